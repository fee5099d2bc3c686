"""What the user sees of a run: progress, curve, page, summary."""
