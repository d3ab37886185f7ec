"""Is a search better than random? Ground truth, rank correlation, significance.

`ranking` has what is computed of qualities and estimates, `significance` says whether a difference may be chance, and
`truth` reads what every architecture of a space is worth. docs/evaluation.md explains each number.
"""
