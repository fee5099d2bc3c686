"""Traces, one of each layer and direction, and what is computed from them: δ, contributions, reach, truncation."""
