"""Statements checked, attacked and validated on language models, and their report."""
