"""Fine-tuning of a language model on new text: how much of the old text is lost, and what prevents it."""
