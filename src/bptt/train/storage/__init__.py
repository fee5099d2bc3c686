"""What a run keeps on disk: its folder, checkpoint, weights, metrics."""
