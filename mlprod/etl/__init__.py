"""Rows to dataset: the only door to SQL and pandas. `run.py` tells the story."""
