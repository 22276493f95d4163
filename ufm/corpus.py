"""Corpora of disjoint concepts: what a next-token model can learn from, and nothing about the model.

A corpus is a next-token table ``p(z | c_j)`` over m distinct contexts with weights pi (S, definition 2.1). Contexts that
share their next-token distribution share a row of the table: under assumption 1 there are as many rows as concepts,
however many contexts, and every closed form costs rows, not contexts. Builders of concrete families are in
`ufm.families`; counting a corpus from tokens is in `ufm.counting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._check import require, typed
from ufm._pytree import Leaf, pytree, static
from ufm.concepts import Concepts
from ufm.precision import full


@pytree
@dataclass(frozen=True)
class Corpus:
    """A next-token table with its contexts (a pytree; `concepts` is static).

    Build it with `from_table` or a family, which check their input; the constructor itself checks nothing, so that it
    can be used inside transformations.

    Attributes:
        log_rows: distinct next-token distributions, ``[r, V]``, log-probabilities in nats (-inf for a zero).
        row: the row of each context, ``[m]`` integers.
        weights: pi, the probability of each context, ``[m]``, positive, summing to 1.
        concept: the concept g(j) of each context, ``[m]`` integers.
        words: the tokens of each context, ``[m, T-1]``, where contexts are made of tokens.
        concepts: the partition of the vocabulary.
    """

    log_rows: Float[Array, "r V"] | Leaf
    row: Int[Array, " m"] | Leaf
    weights: Float[Array, " m"] | Leaf
    concept: Int[Array, " m"] | Leaf
    concepts: Concepts = static()
    words: Int[Array, "m length"] | Leaf | None = field(default=None)

    @property
    def n_contexts(self) -> int:
        """m, the number of distinct contexts."""
        return self.row.shape[-1]

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens."""
        return self.log_rows.shape[-1]

    @property
    def log_p(self) -> Float[Array, "m V"]:
        """The full table of log p(z | c_j), ``[m, V]`` nats: a gather, materialised only where it is asked for."""
        return self.log_rows[self.row]

    @property
    def row_weights(self) -> Float[Array, " r"]:
        """The weight of each row: pi summed over the contexts that share it, ``[r]``."""
        return jnp.zeros(self.log_rows.shape[0], self.weights.dtype).at[self.row].add(self.weights)

    @typed
    def contexts_of(self, concept: int) -> np.ndarray:
        """The contexts of one concept (not inside a transformation).

        Raises:
            ValueError: a concept that does not exist.
        """
        require(0 <= concept < self.concepts.count, "concept", f"a concept in 0..{self.concepts.count - 1}", concept)
        return np.flatnonzero(np.asarray(self.concept) == concept)


@typed
def from_table(
    p: np.ndarray,
    concepts: Concepts | Sequence[Sequence[int]],
    concept_of_context: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    row: Sequence[int] | np.ndarray | None = None,
    words: np.ndarray | None = None,
) -> Corpus:
    """A corpus from a table of next-token probabilities (S, definition 2.1).

    Rows are checked and then divided by their sum, so that the rounding of the input does not enter the entropy.

    Args:
        p: next-token probabilities, ``[m, V]``, or ``[r, V]`` distinct rows if `row` is given.
        concepts: the partition of the vocabulary, or the lists of each concept's tokens.
        concept_of_context: g(j), ``[m]``.
        weights: pi, ``[m]``, any positive numbers (divided by their sum); uniform if left out.
        row: which row of `p` each context has, ``[m]``; by default context j has row j.
        words: the tokens of each context, ``[m, T-1]``, if contexts are made of tokens.

    Raises:
        ValueError: concepts that overlap or leave a token out, rows that do not sum to 1 (to the square root of the
            precision), are negative or hold NaN, a context whose concept does not exist, weights that are not positive.
    """
    table, sums = _checked_table(p)
    if not isinstance(concepts, Concepts):
        concepts = Concepts.from_lists(concepts, table.shape[1])
    require(
        concepts.vocabulary_size == table.shape[1],
        "concepts",
        f"a partition of the {table.shape[1]} tokens of p",
        f"one of {concepts.vocabulary_size}",
    )
    owner, row = _checked_contexts(concept_of_context, row, len(table), concepts.count)
    pi = _checked_weights(weights, row.size)
    pi = pi / pi.max()  # their sum may be too large for a float
    words = None if words is None else _checked_words(words, row.size, table.shape[1])
    with np.errstate(divide="ignore"):
        log_rows = np.log(table) - np.log(sums)[:, None]
    return Corpus(
        log_rows=jnp.asarray(log_rows),
        row=jnp.asarray(row),
        weights=jnp.asarray(pi / pi.sum()),
        concept=jnp.asarray(owner),
        concepts=concepts,
        words=None if words is None else jnp.asarray(words),
    )


def _checked_table(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table of probabilities, ``[r, V]`` floats, and the sums of its rows, ``[r]``."""
    table = np.asarray(p)
    require(table.ndim == 2 and table.size > 0, "p", "a table [contexts, vocabulary]", f"shape {table.shape}")
    tolerance = np.sqrt(np.finfo(table.dtype if np.issubdtype(table.dtype, np.floating) else float).eps)
    table = table.astype(float)
    for check, expected in (
        (np.isfinite(table), "finite probabilities"),
        (table >= 0, "probabilities of at least 0"),
    ):
        bad = np.argwhere(~check)
        if len(bad):
            j, z = (int(i) for i in bad[0])
            require(False, "p", expected, f"{table[j, z]} in row {j}, token {z}")
    sums = table.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    require(bool(abs(sums[worst] - 1) <= tolerance), "p", "rows that sum to 1", f"{float(sums[worst])!r} in row {worst}")
    return table, sums


def _checked_contexts(
    concept_of_context: Sequence[int] | np.ndarray, row: Sequence[int] | np.ndarray | None, rows: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The concept and the row of each context, ``[m]`` integers."""
    owner = np.asarray(concept_of_context)
    row = np.arange(rows) if row is None else np.asarray(row)
    require(
        owner.shape == row.shape and row.ndim == 1 and row.size > 0,
        "concept_of_context",
        f"one concept for each of the {row.size} contexts",
        f"shape {owner.shape}",
    )
    for argument, array in (("concept_of_context", owner), ("row", row)):
        require(np.issubdtype(array.dtype, np.integer), argument, "integers", f"numbers of type {array.dtype}")
    require(bool(((row >= 0) & (row < rows)).all()), "row", f"rows in 0..{rows - 1}", row.tolist())
    unknown = np.flatnonzero((owner < 0) | (owner >= count))
    if unknown.size:
        j = int(unknown[0])
        require(False, "concept_of_context", f"concepts in 0..{count - 1}", f"{owner[j]} for context {j}")
    return owner, row


def _checked_weights(weights: Sequence[float] | np.ndarray | None, contexts: int) -> np.ndarray:
    """The weights of contexts as they are given, or all 1: ``[m]`` floats."""
    pi = np.full(contexts, 1.0) if weights is None else np.asarray(weights, dtype=float)
    require(pi.shape == (contexts,), "weights", f"one weight for each of the {contexts} contexts", f"shape {pi.shape}")
    wrong = np.flatnonzero(~(np.isfinite(pi) & (pi > 0)))
    if wrong.size:
        require(False, "weights", "positive numbers", f"{pi[wrong[0]]} for context {wrong[0]}")
    return pi


def _checked_words(words: np.ndarray, contexts: int, vocabulary: int) -> np.ndarray:
    """The tokens of contexts, ``[m, T-1]`` integers."""
    words = np.asarray(words)
    require(
        words.ndim == 2 and len(words) == contexts,
        "words",
        f"the tokens of each of the {contexts} contexts",
        f"shape {words.shape}",
    )
    require(np.issubdtype(words.dtype, np.integer), "words", "tokens, which are integers", words.dtype)
    outside = words[(words < 0) | (words >= vocabulary)]
    require(outside.size == 0, "words", f"tokens in 0..{vocabulary - 1}", outside[:5].tolist())
    return words


@typed
@jax.jit
@full
def entropy(corpus: Corpus) -> Float[Array, ""]:
    """``sum_j pi_j H(p_j)`` in nats: the lower bound of the cross-entropy of any model of the corpus (S, appendix B.1)."""
    p = jnp.exp(corpus.log_rows)
    h = -jnp.sum(jnp.where(p > 0, p * jnp.where(p > 0, corpus.log_rows, 0), 0), axis=-1)
    return jnp.dot(corpus.row_weights, h)


@pytree
@dataclass(frozen=True)
class AssumptionMargins:
    """How far a corpus is inside (positive) or outside (negative) each part of assumption 1; all in probabilities.

    Attributes:
        inside: minus the largest difference between ``p_j(z)`` over contexts j of z's own concept; 0 when a_z is exact.
            On a counted corpus this is the sampling error.
        outside: the same over contexts of other concepts; 0 when b_z is exact.
        separation: the least ``p_j(z) - p_i(z)`` over tokens z, contexts j of z's concept and i of another;
            ``min_z (a_z - b_z)`` when a and b are exact. Infinite if no token has both kinds of context.
        interior: the least distance of a probability from 0 and from 1.
    """

    inside: Float[Array, ""] | Leaf
    outside: Float[Array, ""] | Leaf
    separation: Float[Array, ""] | Leaf
    interior: Float[Array, ""] | Leaf


@typed
def assumption_1(corpus: Corpus) -> AssumptionMargins:
    """The margins of assumption 1 of S: ``p_j(z) = a_z`` if z and c_j share their concept, else ``b_z``, 1 > a_z > b_z > 0.

    The theorems of S use assumption 1 only through lemma B.4, for which `outside` exact and `separation` positive are
    enough: a may depend on the context (S, appendix B.1).
    """
    rows = corpus.log_rows.shape[0]
    of_token = jnp.asarray(corpus.concepts.of_token)
    # A row can serve contexts of several concepts, so both masks are kept per row and concept.
    serves = jnp.zeros((rows, corpus.concepts.count), bool).at[corpus.row, corpus.concept].set(True)
    inside = serves[:, of_token]
    outside = serves.sum(axis=1, keepdims=True) > inside
    p = jnp.exp(corpus.log_rows)

    def extremes(mask):
        return jnp.min(jnp.where(mask, p, jnp.inf), axis=0), jnp.max(jnp.where(mask, p, -jnp.inf), axis=0)

    (a_low, a_high), (b_low, b_high) = extremes(inside), extremes(outside)
    return AssumptionMargins(
        inside=-jnp.maximum(jnp.max(a_high - a_low), 0.0),
        outside=-jnp.maximum(jnp.max(b_high - b_low), 0.0),
        separation=jnp.min(a_low - b_high),
        interior=jnp.minimum(jnp.min(p), jnp.min(1 - p)),
    )
