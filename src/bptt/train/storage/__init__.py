"""What a run keeps on disk: its folder, config, checkpoint, weights, metrics, report."""
