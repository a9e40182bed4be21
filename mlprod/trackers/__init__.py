"""Trackers that read the run's log in a thread of their own: W&B, TensorBoard, and the user's."""
