"""The networks of the literature as functions: from a grid and its widths to a network document."""
