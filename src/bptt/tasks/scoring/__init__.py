"""How good the answers are, beside honest yardsticks for the same data."""
