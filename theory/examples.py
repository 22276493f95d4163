"""The corpora that trained models are swept on, and the sweeps themselves: the evidence of the sweep route.

Every corpus is trained as far as float64 carries. Together they show each situation a statement speaks of: tied and
distinct log-odds, concepts of equal and unequal size, probabilities that depend on the context, tables without any
structure, contrastive and random negatives, |P| different from |N|, and models too narrow for their corpus, whose gap is
not 0. They have 81 or 9 contexts and 9 tokens, so that what checks them compiles twice.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from theory.instance import Instance, Measured, make_instance
from theory.rationals import RationalInstance, rationalise
from ufm import (
    Corpus,
    Fit,
    Steerable,
    contrastive,
    difference_of_means,
    fit,
    from_table,
    gap,
    per_context,
    random_negatives,
    sweep,
    uniform,
    weighted,
)
from ufm._check import typed
from ufm.model import FreeFeatures

ALPHAS = np.linspace(-60, 60, 1201)
"""The strengths of the sweeps: the paper's range, steps of 0.1."""


_WIDTH = 16
"""The width of models that can have gap 0."""


class Case(NamedTuple):
    """A corpus to train on, and how it is steered.

    Attributes:
        corpus: what is trained on.
        instance: how it is steered, in a model of gap 0.
        width: of the model; below the rank of the corpus its gap is not 0.
    """

    corpus: Corpus
    instance: Instance
    width: int = _WIDTH


def default_case() -> Case:
    """The default corpus (uniform, V=9, G=3, s=3, T=4, eps=0.05), steered from its second concept to its first."""
    corpus = uniform()
    return Case(corpus, make_instance(corpus, *contrastive(corpus, target=0, opposite=1), target=0))


def toy_case() -> Case:
    """The corpus of the toy figures: as the default one, with tokens of unequal shares, so that log-odds differ.

    In the uniform family all target tokens have the same log-odds, all are extreme, and none has a bump; with log-odds a
    few hundredths of a nat apart the bumps of theorem 3.3 spread over tens of units of alpha.
    """
    omega = np.array([0.30, 0.33, 0.37, 0.36, 0.34, 0.30, 0.32, 0.33, 0.35])
    log_odds_below_first = np.array([0.0, 0.05, 0.25, 0.0, 0.06, 0.22, 0.0, 0.03, 0.06])
    gamma = omega * np.exp(-log_odds_below_first)
    gamma /= gamma.reshape(3, 3).sum(axis=1).repeat(3)
    corpus = weighted((3, 3, 3), gamma, omega, 0.05)
    return Case(corpus, make_instance(corpus, *contrastive(corpus, target=0, opposite=1), target=0))


def all_cases() -> dict[str, Case]:
    """The cases to train and sweep, by name."""
    default, toy = default_case(), toy_case()
    random = make_instance(toy.corpus, *random_negatives(toy.corpus, 0), target=0)
    shares = [0.5, 0.3, 0.2, 0.2, 0.2, 0.6, 0.4, 0.35, 0.25]
    tied = weighted((3, 3, 3), shares, shares, 0.2)
    unequal = _unequal_corpus()
    rare, free = _rare_target_token(3), _structureless()
    even = uniform(length=None, contexts_per_concept=3)
    apart = make_instance(unequal, [3, 4, 5], [0, 6], target=1)
    return {
        "default": default,
        "toy": toy,
        "toy, random negatives": Case(toy.corpus, random),
        "tied log-odds": Case(tied, make_instance(tied, *contrastive(tied, target=1, opposite=2), target=1)),
        "rare target token": Case(rare, make_instance(rare, *contrastive(rare, target=0, opposite=1), target=0)),
        "per-context, unequal concepts": Case(unequal, apart),
        # Both other concepts have the least log-odds.
        "even negatives": Case(even, make_instance(even, *random_negatives(even, 0), target=0)),
        "no structure": Case(free, make_instance(free, [0, 1], [4, 7, 8], target=0)),
        "one feature": Case(unequal, apart, width=1),
        "three features": Case(unequal, apart, width=3),
    }


def exact_instances() -> dict[str, RationalInstance]:
    """The instances that certificates are about, by name: contexts that share a row are one context here.

    Beside those of `all_cases` there are small ones of two concepts and three, of unequal sizes, with several contexts in
    P and N, negatives of all other concepts, and tables outside assumption 1.
    """
    default, toy = uniform(length=None, contexts_per_concept=1), toy_case().corpus
    rows = from_table(np.exp(np.asarray(toy.log_rows)), toy.concepts, [0, 1, 2])
    rare = _rare_target_token(1)
    return {
        "default": rationalise(make_instance(default, [0], [1], target=0), 6),
        "toy": rationalise(make_instance(rows, [0], [1], target=0), 4),
        "rare target token": rationalise(make_instance(rare, [0], [1], target=0), 6),
        **{name: _exact(*table) for name, table in _SMALL_TABLES.items()},
    }


class _SmallTable(NamedTuple):
    """A table in percent, the tokens of each concept, the concept of each context, P, N and the target."""

    percent: list[list[float]]
    concepts: list[list[int]]
    owner: list[int]
    positive: list[int]
    negative: list[int]
    target: int


_SMALL_TABLES = {
    # Assumption 1 holds, and after the third context the second token of the target has its peak behind it at 0.
    "loud noise": _SmallTable(
        [[68, 30, 1, 1], [30, 29, 40, 1], [30, 29, 1, 40]], [[0, 1], [2], [3]], [0, 1, 2], [0], [1], target=0
    ),
    # a depends on the context; negatives of both other concepts.
    "random negatives": _SmallTable(
        [[8, 60, 25, 7], [40, 12, 5, 43], [8, 12, 73, 7], [50, 12, 5, 33], [8, 12, 73, 7]],
        [[1], [2], [0, 3]],
        [0, 2, 1, 2, 1],
        [0],
        [1, 2, 3],
        target=0,
    ),
    # Two concepts, outside assumption 1, two contexts each in P and N.
    "two concepts": _SmallTable(
        [[50, 20, 20, 10], [30, 45, 15, 10], [20, 10, 40, 30], [5, 35, 25, 35]],
        [[0], [1, 2, 3]],
        [0, 0, 1, 1],
        [0, 1],
        [2, 3],
        target=0,
    ),
    # Membership changes four times along the order of the log-odds, and the share of a concept turns three times.
    "concepts by turns": _SmallTable(
        [[0.3, 10.4, 51.6, 34.6, 3.1], [4.4, 39.4, 48.0, 8.0, 0.2]], [[0, 2, 4], [1, 3]], [0, 1], [0], [1], target=0
    ),
    # Log-odds of two values. Bounds that know R and the variance alone are nearly attained: from a rare token for one of
    # them, from even odds for the other.
    "two values": _SmallTable([[70, 30], [30, 70], [50, 50], [4, 96]], [[0], [1]], [0, 1, 0, 1], [0], [1], target=0),
}


def _exact(percent, concepts, owner, positive, negative, target) -> RationalInstance:
    corpus = from_table(np.asarray(percent) / 100, concepts, owner)
    return rationalise(make_instance(corpus, positive, negative, target=target), 8)


@typed
def train(cases: dict[str, Case], key: jax.Array | None = None) -> Iterator[tuple[str, Fit]]:
    """Train the corpus of each case as far as float64 carries; cases that share a corpus and a width share the `Fit`."""
    fits: dict[tuple[int, int], Fit] = {}
    for name, case in cases.items():
        known = id(case.corpus), case.width
        if known not in fits:
            with warnings.catch_warnings():
                # Of models that are too narrow on purpose.
                warnings.filterwarnings("ignore", message="fit: the gap is")
                fits[known] = fit(case.corpus, d=case.width, tolerance=0.0, key=key)
        yield name, fits[known]


@typed
def measure(case: Case, model: Steerable) -> Measured:
    """The sweep of a trained model of the case's corpus over `ALPHAS`; its instance carries the model's gap."""
    assert isinstance(model, FreeFeatures)
    contexts = jnp.arange(case.corpus.n_contexts)
    v = difference_of_means(model, contexts, case.instance.contrast)
    curves = _sweep(model, contexts, v, jnp.asarray(ALPHAS))
    instance = dataclasses.replace(case.instance, gap=gap(model, case.corpus))
    return Measured(case.corpus, instance, model, v, ALPHAS, np.asarray(curves))


@typed
def measured(seed: int = 0) -> list[Measured]:
    """All cases, trained and swept."""
    cases = all_cases()
    return [measure(cases[name], trained.model) for name, trained in train(cases, jax.random.key(seed))]


def instance_of(corpus: Corpus, target: int) -> Instance:
    """The table of a corpus, with the contexts of the target against all others."""
    return make_instance(corpus, *random_negatives(corpus, target), target=target)


@jax.jit
def _sweep(model, contexts, v, alphas):
    return sweep(model, contexts, v, alphas, lambda logits, _: jax.nn.log_softmax(logits))


def _rare_target_token(contexts_per_concept: int) -> Corpus:
    """The tokens of the first concept are so unequal that the rarest peaks before 0 after its own contexts."""
    shares = [0.6, 0.3, 0.1, 0.5, 0.3, 0.2, 0.4, 0.4, 0.2]
    return weighted((3, 3, 3), shares, [1 / 3] * 9, 0.05, length=None, contexts_per_concept=contexts_per_concept)


def _structureless() -> Corpus:
    """Concepts of 2, 3 and 4 tokens, and rows that take no notice of them."""
    rows = 0.9 * np.random.default_rng(4).dirichlet(np.ones(9), size=9) + 0.1 / 9
    return from_table(rows, [[0, 1], [2, 3, 4], [5, 6, 7, 8]], np.repeat([0, 1, 2], 3), np.arange(9, 0, -1))


def _unequal_corpus() -> Corpus:
    """Concepts of 2, 3 and 4 tokens, three contexts each, a depending on the context (S, appendix B.1)."""
    owner = np.repeat([0, 1, 2], 3)
    shares = np.array([[1.0, 1.3, 1.0, 1.2, 1.5, 1.0, 0.8, 1.1, 1.3], [1.2, 1.0, 1.4, 1.0, 1.1, 0.9, 1.0, 1.2, 1.0]])
    gamma = np.stack([shares[0] ** (1 + j / 4) for j in range(9)])
    of_token = np.repeat([0, 1, 2], [2, 3, 4])

    def normalised(rows):
        sums = np.stack([rows[..., of_token == k].sum(-1) for k in range(3)], axis=-1)
        return rows / sums[..., of_token]

    return per_context((2, 3, 4), normalised(gamma), normalised(shares[1]), 0.1, owner, weights=np.arange(1, 10))
