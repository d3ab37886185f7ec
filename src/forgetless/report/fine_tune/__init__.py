"""What the terminal and the report show of a fine-tuning."""
