"""The whole gradient within a budget of memory."""
