"""The toy experiments of the steering-strength paper, as labelled data.

Nothing is drawn here: each function lays the prediction of the theory beside what a trained model does, on one grid of
strengths, and returns an `xarray.Dataset`. `run` puts them all together and trains the two runs of the training curve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from theory import predicted
from theory.examples import Case, measure
from theory.instance import Instance
from theory.statements.theorem_3_6 import lowest_concepts, without_extremes
from theory.statements.theorem_3_8 import mean_variance
from ufm import (
    Corpus,
    Fit,
    concept_increase,
    cross_entropy_increase,
    difference_of_means,
    fit,
    probability_increase,
)
from ufm._check import require, typed
from ufm.steerable import Steerable

TOKEN_NAMES = ("a", "b", "c", "A", "B", "C", "α", "β", "γ")
"""The vocabulary of the paper's example (S, equation 2)."""

CONCEPT_NAMES = ("lowercase", "uppercase", "Greek")
"""Its concepts."""


class Names(NamedTuple):
    """The names of the tokens, concepts and contexts of a corpus.

    Attributes:
        tokens: one for each.
        concepts: one for each.
        contexts: one for each; made of the tokens if empty.
    """

    tokens: tuple[str, ...] = TOKEN_NAMES
    concepts: tuple[str, ...] = CONCEPT_NAMES
    contexts: tuple[str, ...] = ()


class Trained(NamedTuple):
    """A case and a model trained on its corpus as far as float64 carries.

    Attributes:
        case: the corpus, and how it is steered.
        fit: the training.
        names: of what is in the corpus; those of the paper's example if left out.
    """

    case: Case
    fit: Fit
    names: Names = Names()

    @property
    def corpus(self) -> Corpus:
        """The corpus that was trained on."""
        return self.case.corpus

    @property
    def instance(self) -> Instance:
        """How it is steered."""
        return self.case.instance

    @property
    def v(self):
        """The steering vector of the instance, ``[d]``."""
        contexts = jnp.arange(self.corpus.n_contexts)
        return difference_of_means(self.model, contexts, self.instance.contrast)

    @property
    def model(self) -> Steerable:
        """The trained model."""
        return self.fit.model


@typed
def run(default: Trained, toy: Trained, seed: int = 0) -> xr.DataTree:
    """The data of every toy figure (call it inside ``jax.enable_x64(True)``).

    Args:
        default: `theory.examples.default_case` and its trained model.
        toy: `theory.examples.toy_case` and its trained model.
        seed: of the initial parameters of the training curves.

    Returns:
        A tree with one dataset per figure: "next-token-table" (figure 2), "next-token-curves" (figures 3 and B.1),
        "concept-curves" (figure 4), "cross-entropy" (figure 5) and "training".
    """
    key = jax.random.key(seed)
    runs = {name: fit(default.corpus, optimizer=name, key=key) for name in ("gradient-descent", "lbfgs")}
    # A context of the concept that is neither steered towards nor away from, whose curves move both ways.
    third = int(default.corpus.contexts_of(2)[0])
    return xr.DataTree.from_dict(
        {
            "next-token-table": next_token_table(toy, contexts=[1, 31]),
            "next-token-curves": next_token_curves(toy, third, np.linspace(-60, 60, 2401)),
            "concept-curves": concept_curves(default, third, np.linspace(-4, 4, 401)),
            "cross-entropy": cross_entropy(default, np.linspace(-1, 1, 201)),
            "training": training(runs),
        }
    )


@typed
def of_corpus(trained: Trained, seed: int = 0) -> dict[str, xr.Dataset]:
    """The data of the toy figures of any corpus, whose first concept is steered to, and away from the second.

    Curves are of the first context of another concept than the target, the third if there is one; they reach as far as it
    takes to see its peaks and where it settles.

    Args:
        trained: the case and its model.
        seed: of the initial parameters of the training curves.
    """
    corpus, instance = trained.corpus, trained.instance
    first = [int(contexts[0]) for g in range(corpus.concepts.count) if len(contexts := corpus.contexts_of(g))]
    context = first[min(2, len(first) - 1)]
    peaks = np.asarray(instance.peaks[context])
    unit = 1 / float(instance.range)
    far = max(10 * unit, 1.3 * np.abs(peaks[np.isfinite(peaks)]).max(initial=0))
    runs = {name: fit(corpus, optimizer=name, key=jax.random.key(seed)) for name in ("gradient-descent", "lbfgs")}
    return {
        "next-token-table": next_token_table(trained, contexts=first[:2]),
        "next-token-curves": next_token_curves(trained, context, np.linspace(-far, far, 2401)),
        "concept-curves": concept_curves(trained, context, np.linspace(-far, far, 401)),
        "cross-entropy": cross_entropy(trained, np.linspace(-8 * unit, 8 * unit, 201)),
        "training": training(runs),
    }


@typed
def next_token_table(trained: Trained, contexts: Sequence[int]) -> xr.Dataset:
    """``p(z | c_j)`` for some contexts (S, figure 2); dims context, token."""
    corpus, names = trained.corpus, list(trained.names.contexts)
    if not names and corpus.words is not None:
        names = ["".join(trained.names.tokens[z] for z in words) for words in corpus.words]
    shown = [names[j] for j in contexts] if names else contexts
    return xr.Dataset(
        {
            "probability": (("context", "token"), np.exp(np.asarray(corpus.log_p))[list(contexts)]),
            "concept_of_context": ("context", np.asarray(corpus.concept)[list(contexts)]),
        },
        coords={"context": shown, **_token_coordinates(trained)},
    )


@typed
def next_token_curves(trained: Trained, context: int, alphas: np.ndarray) -> xr.Dataset:
    """``Delta p(z | c_j, alpha)`` for every token of one context (S, figures 3 and B.1); dims alpha, token."""
    instance = trained.instance
    return xr.Dataset(
        {
            "predicted": (
                ("alpha", "token"),
                predicted.probability_increase(trained.corpus, [context], instance.log_odds, alphas)[0],
            ),
            "measured": (("alpha", "token"), probability_increase(trained.model, [context], trained.v, alphas)[0]),
            "peak": ("token", np.asarray(instance.peaks[context])),
            "log_odds": ("token", np.asarray(instance.log_odds)),
        },
        coords={"alpha": alphas, **_token_coordinates(trained)},
        attrs={"context": context, "gap": trained.fit.gap, "steered": _steered(trained, context)},
    )


def _steered(trained: Trained, context: int) -> str:
    """After which context and between which concepts, in words; "" for the paper's example, whose contexts have no names."""
    names = trained.names
    return f"after {names.contexts[context]!r}, {names.concepts[1]} to {names.concepts[0]}" if names.contexts else ""


@typed
def concept_curves(trained: Trained, context: int, alphas: np.ndarray) -> xr.Dataset:
    """``Delta p(C | c_j, alpha)`` for every concept (S, figure 4); dims alpha, concept.

    `behaviour` names what theorem 3.6 says of each: "target", "vanishing" (no extreme log-odds), "decreasing".
    """
    instance = trained.instance
    concepts = trained.corpus.concepts
    is_target = np.arange(concepts.count) == int(instance.target)
    between, lowest = np.asarray(without_extremes(instance)[context]), np.asarray(lowest_concepts(instance)[context]) < 0
    behaviour = np.select([is_target, between, lowest], ["target", "vanishing", "decreasing"], "none")
    return xr.Dataset(
        {
            "predicted": (
                ("alpha", "concept"),
                predicted.concept_increase(trained.corpus, [context], instance.log_odds, alphas)[0],
            ),
            "measured": (
                ("alpha", "concept"),
                concept_increase(trained.model, [context], trained.v, alphas, concepts)[0],
            ),
            "behaviour": ("concept", behaviour),
            "limit": (
                "concept",
                [-np.exp(np.asarray(instance.log_p))[context][concepts.members(k)].mean() for k in range(concepts.count)],
            ),
        },
        coords={"alpha": alphas, "concept": list(trained.names.concepts)},
        attrs={"context": context, "gap": trained.fit.gap, "steered": _steered(trained, context)},
    )


@typed
def cross_entropy(trained: Trained, alphas: np.ndarray) -> xr.Dataset:
    """``Delta CE(alpha)`` and the quadratic of theorem 3.8 (S, figure 5); dim alpha."""
    instance = trained.instance
    half_variance = float(mean_variance(instance)) / 2
    return xr.Dataset(
        {
            "predicted": ("alpha", predicted.cross_entropy_increase(trained.corpus, instance.log_odds, alphas)),
            "measured": ("alpha", cross_entropy_increase(trained.model, trained.corpus, trained.v, alphas)),
            "quadratic": ("alpha", half_variance * alphas**2),
        },
        coords={"alpha": alphas},
        attrs={"coefficient": half_variance, "gap": trained.fit.gap},
    )


@typed
def training(runs: dict[str, Fit]) -> xr.Dataset:
    """Loss curves by optimiser, with the entropy bound (S, appendix B.1); dims step, optimizer; NaN after the last step.

    Raises:
        ValueError: no runs.
    """
    require(len(runs) > 0, "runs", "at least one", "none")
    longest = max(fitted.steps for fitted in runs.values()) + 1
    gaps = np.full((longest, len(runs)), np.nan)
    for column, fitted in enumerate(runs.values()):
        gaps[: fitted.gaps.size, column] = fitted.gaps
    entropy = next(iter(runs.values())).entropy
    return xr.Dataset(
        {"loss": (("step", "optimizer"), entropy + gaps), "gap": (("step", "optimizer"), gaps)},
        coords={"step": np.arange(longest), "optimizer": list(runs)},
        attrs={"entropy": entropy},
    )


class Agreement(NamedTuple):
    """How well a trained model does what its corpus predicts, over the sweep of the examples (alpha in [-60, 60]).

    Attributes:
        probability: the largest absolute difference of any steered probability.
        peak_steps: the largest distance from a closed-form peak inside the sweep to the measured maximum, in grid steps.
        peaks: how many peaks that is over.
    """

    probability: float
    peak_steps: float
    peaks: int


@typed
def agreement(trained: Trained) -> Agreement:
    """Lay a trained model over the closed forms of its corpus (inside ``jax.enable_x64(True)``)."""
    instance, swept = trained.instance, measure(trained.case, trained.model)
    contexts = np.arange(trained.corpus.n_contexts)
    p = np.exp(swept.log_probabilities)
    expected = predicted.probability_increase(trained.corpus, contexts, instance.log_odds, swept.alphas)
    difference = np.abs(p - np.exp(np.asarray(instance.log_p))[:, None, :] - np.asarray(expected))
    expected_peaks = np.asarray(instance.peaks)
    inside = np.abs(expected_peaks) < swept.alphas[-1] - swept.step
    offsets = np.abs(swept.alphas[p.argmax(axis=1)] - expected_peaks)[inside] / swept.step
    return Agreement(float(difference.max()), float(offsets.max(initial=0.0)), int(inside.sum()))


def _token_coordinates(trained: Trained) -> dict:
    return {
        "token": list(trained.names.tokens),
        "concept_of_token": ("token", trained.corpus.concepts.of_token),
        "in_target": ("token", np.asarray(trained.instance.in_target)),
    }
