"""Experiments on language models: stages in a folder for each paper, and what they share."""
