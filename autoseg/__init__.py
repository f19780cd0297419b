"""autoseg: from a folder of labelled scans to label maps, decided by measuring."""

__version__ = "0.1.0"
