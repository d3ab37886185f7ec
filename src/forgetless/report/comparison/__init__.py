"""The report of comparisons."""
