"""The report of searches."""
