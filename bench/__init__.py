"""Measuring autoseg, alone and beside nnU-Net: see README.md in this folder."""
