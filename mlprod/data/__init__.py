"""Dataset to host batches: the only door to grain."""
