"""How `Observations` are shown: as a page, charts, words, a plot, in TensorBoard."""
