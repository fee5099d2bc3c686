"""What happens around a training step: hooks, what they keep of each call, and the traces that follow from it."""
