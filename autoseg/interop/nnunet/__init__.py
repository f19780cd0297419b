"""nnU-Net v2: its plans, models and checkpoints, read and written."""
