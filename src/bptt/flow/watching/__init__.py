"""What is seen around a training step: the calls, the way back through them, the numbers, the diagnosis."""
