"""Experiments on language models, one module each."""
