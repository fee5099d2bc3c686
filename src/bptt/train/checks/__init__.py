"""Refusing what cannot work, in one sentence and before it costs time: options, machine, run folder, checkpoint."""
