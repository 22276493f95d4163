"""Instances: what a statement is about. A next-token table with its concepts, a contrast of its contexts, and the target.

`Instance` is a pytree of plain arrays, so that a statement's margin is a function that `jax.vmap` runs over thousands of
them, that JAX differentiates with respect to the table, and that ball arithmetic evaluates on an exact one. Random
instances are drawn in `theory.random_instances`; `Measured` is an instance together with a trained model that was swept.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from theory import tilting
from ufm import Corpus, Steerable, contrast, gap
from ufm._check import require, typed
from ufm._pytree import Leaf, pytree
from ufm.directions import contrast_of_rows
from ufm.model import FreeFeatures
from ufm.precision import full


@pytree
@dataclass(frozen=True)
class Instance:
    """A next-token table to be steered.

    Attributes:
        log_p: log p_j(z), ``[m, V]`` nats.
        weights: pi, the probability of each context, ``[m]``.
        concept: the concept of each context, ``[m]``.
        members: which tokens each concept has, ``[G, V]``. A random instance with fewer concepts than rows lists one of
            them twice.
        contrast: 1/|P| on P, -1/|N| on N, ``[m]`` (`ufm.contrast`).
        target: the concept that P is taken from.
        known_peaks: `peaks`, where they were computed before (`with_peaks`), ``[m, V]``.
        gap: of the model that is steered, nats (`ufm.gap`). None: 0, as closed forms have it.
    """

    log_p: Float[Array, "m V"] | Leaf
    weights: Float[Array, " m"] | Leaf
    concept: Int[Array, " m"] | Leaf
    members: Bool[Array, "G V"] | Leaf
    contrast: Float[Array, " m"] | Leaf
    target: Int[Array, ""] | Leaf
    known_peaks: Float[Array, "m V"] | Leaf | None = field(default=None)
    gap: Float[Array, ""] | Leaf | None = field(default=None)

    @property
    def p(self) -> Float[Array, "m V"]:
        """p_j(z), the next-token probabilities, ``[m, V]``."""
        return jnp.exp(self.log_p)

    @property
    @full
    def log_odds(self) -> Float[Array, " V"]:
        """M, nats (S, definition 3.2)."""
        return contrast_of_rows(self.log_p, self.contrast)

    @property
    def range(self) -> Float[Array, ""]:
        """R = max M - min M, nats."""
        return jnp.max(self.log_odds) - jnp.min(self.log_odds)

    @property
    def in_target(self) -> Bool[Array, " V"]:
        """Which tokens are of the target concept."""
        return self.members[self.target]

    @property
    def inside(self) -> Bool[Array, "m V"]:
        """Which tokens share the concept of each context."""
        return self.members[self.concept]

    @property
    def sizes(self) -> Int[Array, " G"]:
        """Tokens per concept."""
        return jnp.sum(self.members, axis=-1)

    @property
    def peaks(self) -> Float[Array, "m V"]:
        """``alpha_{j,z}`` for every context and token: +inf and -inf for extreme tokens (`theory.tilting.peaks`)."""
        if self.known_peaks is not None:
            return self.known_peaks
        m = self.log_odds
        return jax.vmap(lambda log_p: tilting.peaks(log_p, m))(self.log_p)


@typed
def with_peaks(instance: Instance) -> Instance:
    """The instance with its peaks computed, so that margins do not compute them again."""
    return dataclasses.replace(instance, known_peaks=instance.peaks)


@typed
def make_instance(
    corpus: Corpus,
    positive: Sequence[int] | np.ndarray,
    negative: Sequence[int] | np.ndarray,
    target: int,
    model: FreeFeatures | None = None,
) -> Instance:
    """An instance from a corpus and explicit P and N, checked.

    Args:
        corpus: the next-token table.
        positive, negative: P and N.
        target: the concept that P is taken from.
        model: what is steered, trained on the corpus: the instance carries its gap, and statements that need assumption 2
            say nothing if that is not 0. If left out, a model of gap 0 is meant.

    Raises:
        ValueError: as `ufm.contrast`; a target that does not exist; a corpus of one concept; P outside the target or N
            inside it; a model of another corpus.
    """
    concepts = corpus.concepts
    require(concepts.count >= 2, "corpus", "at least two concepts to contrast", concepts.count)
    require(0 <= target < concepts.count, "target", f"a concept in 0..{concepts.count - 1}", target)
    weights = contrast(corpus.n_contexts, positive, negative)
    concept = np.asarray(corpus.concept)
    wrong_p = [int(j) for j in positive if concept[j] != target]
    wrong_n = [int(j) for j in negative if concept[j] == target]
    require(not wrong_p, "positive", f"contexts of the target concept {target}", f"contexts {wrong_p} of others")
    require(not wrong_n, "negative", f"contexts outside the target concept {target}", f"contexts {wrong_n} of it")
    return Instance(
        log_p=corpus.log_p,
        weights=corpus.weights,
        concept=corpus.concept,
        members=jnp.asarray(concepts.of_token == np.arange(concepts.count)[:, None]),
        contrast=weights,
        target=jnp.asarray(target),
        gap=None if model is None else gap(model, corpus),
    )


@dataclass(frozen=True)
class Measured:
    """An instance with a trained model of its corpus, swept.

    Attributes:
        corpus: what was trained on.
        instance: how it was steered.
        model: the trained model (`ufm.UFM`).
        v: its steering vector, ``[d]``.
        alphas: an even grid of strengths that contains 0, ``[K]``.
        log_probabilities: measured log softmax of the steered logits, ``[m, K, V]`` nats.
    """

    corpus: Corpus
    instance: Instance
    model: Steerable
    v: Float[Array, " d"]
    alphas: Float[np.ndarray, " K"]
    log_probabilities: Float[np.ndarray, "m K V"]

    @property
    def step(self) -> float:
        """The distance between two strengths of the grid."""
        return float(self.alphas[1] - self.alphas[0])

    @property
    def zero(self) -> int:
        """The index of alpha = 0."""
        return int(np.argmin(np.abs(self.alphas)))

    @cached_property
    def concept_log_odds(self) -> Float[np.ndarray, "m K G"]:
        """Measured ``logit F_C`` of every concept, nats."""
        return np.stack([self.event_log_odds(mask) for mask in np.asarray(self.instance.members)], axis=-1)

    def event_log_odds(self, tokens: Bool[np.ndarray, " V"]) -> Float[np.ndarray, "m K"]:
        """Measured log-odds of the event that the next token is one of those in a mask, nats."""
        with np.errstate(divide="ignore"):
            inside = np.logaddexp.reduce(self.log_probabilities[..., tokens], axis=-1)
            outside = np.logaddexp.reduce(self.log_probabilities[..., ~tokens], axis=-1)
        return inside - outside
