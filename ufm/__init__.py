"""Unconstrained features models, steered: corpora of concepts, the model, training, the split, measures.

Pure functions on pytrees: no files, no plots, no printing. Precision is that of the scope: `in_float64` is what theory is
meant for.
"""

from ufm._versions import require_supported

require_supported()  # before what an old JAX lacks is imported

# ruff: noqa: E402
from ufm._pytree import pytree
from ufm.concepts import Concepts, concept_log_probabilities
from ufm.corpus import AssumptionMargins, Corpus, assumption_1, entropy, from_table
from ufm.counting import count_documents, sample_documents
from ufm.directional_interventions import Ablate, Clamp, NormPreservingAdd, Rotate, When
from ufm.directions import contrast, contrastive, difference_of_means, log_odds, random_negatives
from ufm.families import log_linear, mixed, per_context, uniform, weighted
from ufm.interventions import Add, Intervention, LoRA, NullOut, Weight, init_update
from ufm.measures import concept_increase, cross_entropy_increase, curvature, divergence, probability_increase
from ufm.model import UFM, FreeFeatures, cross_entropy, exact, gap, init, logits
from ufm.normalised import NormalisedUFM, init_normalised, norm
from ufm.precision import in_float64
from ufm.preference import Answers, preference_odds, utility_odds
from ufm.steerable import Steerable, steer, sweep, sweep_states
from ufm.steering import After, All, Last, State, Steering, Where
from ufm.training import OPTIMIZERS, Fit, fit

__all__ = [
    "OPTIMIZERS",
    "UFM",
    "Ablate",
    "Add",
    "After",
    "All",
    "Answers",
    "AssumptionMargins",
    "Clamp",
    "Concepts",
    "Corpus",
    "Fit",
    "FreeFeatures",
    "Intervention",
    "Last",
    "LoRA",
    "NormPreservingAdd",
    "NormalisedUFM",
    "NullOut",
    "Rotate",
    "State",
    "Steerable",
    "Steering",
    "Weight",
    "When",
    "Where",
    "assumption_1",
    "concept_increase",
    "concept_log_probabilities",
    "contrast",
    "contrastive",
    "count_documents",
    "cross_entropy",
    "cross_entropy_increase",
    "curvature",
    "difference_of_means",
    "divergence",
    "entropy",
    "exact",
    "fit",
    "from_table",
    "gap",
    "in_float64",
    "init",
    "init_normalised",
    "init_update",
    "log_linear",
    "log_odds",
    "logits",
    "mixed",
    "norm",
    "per_context",
    "preference_odds",
    "probability_increase",
    "pytree",
    "random_negatives",
    "sample_documents",
    "steer",
    "sweep",
    "sweep_states",
    "uniform",
    "utility_odds",
    "weighted",
]
