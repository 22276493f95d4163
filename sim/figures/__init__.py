"""Figures as functions of labelled data: each takes a dataset of `sim.toy` and returns a matplotlib `Figure`."""

from sim.figures.counterexample import counterexample
from sim.figures.style import save
from sim.figures.toy import TOY_FIGURES, concept_curves, cross_entropy, next_token_curves, next_token_table, training

__all__ = [
    "TOY_FIGURES",
    "concept_curves",
    "counterexample",
    "cross_entropy",
    "next_token_curves",
    "next_token_table",
    "save",
    "training",
]
