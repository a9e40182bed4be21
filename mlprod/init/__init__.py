"""The verb `init`: a table that nobody here has seen becomes a config that trains."""
