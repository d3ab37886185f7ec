"""One module per published figure: a frozen configuration and a `run` that makes the numbers behind it."""
