"""What this machine has, and what is wrong with it. `run.py` is the story."""
