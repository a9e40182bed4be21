"""Meshes, layouts and placement. Knows no model: only paths, shapes and a table of dim names."""
