"""What the terminal and the report show of a landscape."""
