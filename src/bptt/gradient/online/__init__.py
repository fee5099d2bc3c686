"""Gradients that are carried forward in time, in memory that does not grow with T."""
