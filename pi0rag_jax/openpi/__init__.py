"""The bridge to openpi: its checkpoints in and out."""
