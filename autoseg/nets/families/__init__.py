"""One module for each family of networks, all of one contract (`nets.network`)."""
