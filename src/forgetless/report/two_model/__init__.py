"""The report of two-model runs."""
