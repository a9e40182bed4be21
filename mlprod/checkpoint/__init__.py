"""Saved steps of a run: what stands in one, how it is saved, read back, restored and thrown away."""
