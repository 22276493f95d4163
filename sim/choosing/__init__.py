"""How hard to push: the strength of a steering, what it costs, what it buys, and what is guaranteed (`sim.choose`)."""
