"""Figures as functions of labelled data: each takes a dataset of `sim` and returns a matplotlib `Figure`."""

from sim.figures.arc import ARC_FIGURES, arc
from sim.figures.choosing import CHOOSING_FIGURES
from sim.figures.costs import COSTS_FIGURES
from sim.figures.counterexample import counterexample
from sim.figures.preference import PREFERENCE_FIGURES
from sim.figures.style import Drawing, save
from sim.figures.toy import (
    TOY_FIGURES,
    concept_curves,
    cross_entropy,
    next_token_curves,
    next_token_table,
    training,
)
from sim.figures.uppercase import UPPERCASE_FIGURES
from sim.figures.validation import VALIDATION_FIGURES

FIGURES: dict[str, Drawing] = {
    **TOY_FIGURES,
    **ARC_FIGURES,
    **COSTS_FIGURES,
}
"""Every toy figure of a reproduction, by the name of its files; others: `VALIDATION_FIGURES`, `UPPERCASE_FIGURES`,
`PREFERENCE_FIGURES`, `CHOOSING_FIGURES`, and `STRENGTH_FIGURES` of `sim.figures.strength`."""

__all__ = [
    "ARC_FIGURES",
    "CHOOSING_FIGURES",
    "COSTS_FIGURES",
    "FIGURES",
    "PREFERENCE_FIGURES",
    "TOY_FIGURES",
    "UPPERCASE_FIGURES",
    "VALIDATION_FIGURES",
    "Drawing",
    "arc",
    "concept_curves",
    "counterexample",
    "cross_entropy",
    "next_token_curves",
    "next_token_table",
    "save",
    "training",
]
