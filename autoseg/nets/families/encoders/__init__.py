"""The image classifiers that segmentation networks are built on, with the names of their weights."""
