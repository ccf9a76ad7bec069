"""What a run keeps: its folder, checkpoints, rows of metrics, and how they are read back."""
