"""Data sets by name, one in each file; importing them loads nothing."""
