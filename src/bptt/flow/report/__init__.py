"""What was seen, shown: a page, charts, words, a plot, TensorBoard."""
