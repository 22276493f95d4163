"""The one-layer GPT of S: its training and its concept of uppercase."""
