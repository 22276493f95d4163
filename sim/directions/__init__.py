"""Ways to a steering vector from a language model, what tells whether it is a good one, and files that hold it."""
