"""What became of a run, as a page, and several runs beside each other: the verbs `report` and `compare`."""
