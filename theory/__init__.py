"""The theory of steering strength: closed forms, statements as margins, and the ways to check them.

Run inside ``jax.enable_x64(True)``: margins are meant for float64.
"""

from theory import gallery, predicted, routes, tilting
from theory.instance import Instance, Measured, draw, make_instance
from theory.routes import Evidence, check
from theory.statement import Claim, Statement, find
from theory.statements import REGISTRY

__all__ = [
    "REGISTRY",
    "Claim",
    "Evidence",
    "Instance",
    "Measured",
    "Statement",
    "check",
    "draw",
    "find",
    "gallery",
    "make_instance",
    "predicted",
    "routes",
    "tilting",
]
