"""Inputs that are not one padded tensor in memory: packed sequences, and streams."""
