"""What the numbers of each layer say: profiles, a verdict with its evidence, and remedies."""
