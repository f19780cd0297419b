"""Data of others become a dataset: how their files are found, checked and written."""
