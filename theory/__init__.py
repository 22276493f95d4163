"""The theory of steering strength: closed forms, statements as margins, and the ways to check them.

Run inside ``jax.enable_x64(True)``: margins are meant for float64.
"""

from theory import allocation, budgets, examples, predicted, random_instances, rationals, routes, tilting
from theory.certificate import certify
from theory.instance import Instance, Measured, make_instance
from theory.refute import attack, confirmed
from theory.routes import Evidence, check
from theory.statement import Claim, Curve, Domain, Hypothesis, Statement, find, find_all
from theory.statements import REGISTRY
from theory.taylor import taylor

__all__ = [
    "REGISTRY",
    "Claim",
    "Curve",
    "Domain",
    "Evidence",
    "Hypothesis",
    "Instance",
    "Measured",
    "Statement",
    "allocation",
    "attack",
    "budgets",
    "certify",
    "check",
    "confirmed",
    "examples",
    "find",
    "find_all",
    "make_instance",
    "predicted",
    "random_instances",
    "rationals",
    "routes",
    "taylor",
    "tilting",
]
