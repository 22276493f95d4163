"""Concepts: a partition of the vocabulary into disjoint sets of tokens (S, section 2.1).

A partition is structure, not data: it is hashable and travels through `jax.jit` as a static field, so that sums over
a concept compile to dense gathers over precomputed index blocks instead of scatters.
"""

from collections.abc import Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._check import require, typed
from ufm.precision import wide

LARGEST = 2**24
"""The most tokens of a vocabulary, and the most contexts, that are made from a number."""


def check_count(argument: str, things: str, count: int) -> None:
    """Refuse a number of tokens or contexts whose arrays would not fit in memory.

    Raises:
        ValueError: more than `LARGEST`.
    """
    require(count <= LARGEST, argument, f"{things} that fit in memory, at most {LARGEST}", count)


class Concepts:
    """A partition of the tokens ``0..V-1`` into the concepts ``0..G-1``; sizes may differ.

    Args:
        of_token: the concept of every token, ``[V]`` integers that use each of ``0..G-1`` at least once.

    Raises:
        ValueError: if a concept number is skipped or negative, or the vocabulary is empty.
    """

    @typed
    def __init__(self, of_token: Sequence[int] | np.ndarray):
        array = np.asarray(of_token)
        require(array.ndim == 1 and array.size > 0, "of_token", "the concept of each of V >= 1 tokens", of_token)
        used = np.unique(array)
        require(
            bool(np.array_equal(used, np.arange(used.size))),
            "of_token",
            "concepts numbered 0..G-1, none of them empty",
            f"the numbers {used.tolist()}",
        )
        array = array.astype(np.int32)
        array.setflags(write=False)
        self.of_token = array
        self._hash = hash(array.tobytes())

    @classmethod
    @typed
    def from_sizes(cls, sizes: Sequence[int]) -> "Concepts":
        """Consecutive tokens: the first ``sizes[0]`` are concept 0, and so on.

        Raises:
            ValueError: no size, one that is no whole number from 1 on, or more tokens than fit in memory.
        """
        fits = len(sizes) > 0 and min(sizes) >= 1
        require(fits, "sizes", "at least one concept, each of one token or more", sizes)
        check_count("sizes", "tokens", sum(map(int, sizes)))
        return cls(np.repeat(np.arange(len(sizes)), sizes))

    @classmethod
    @typed
    def from_lists(cls, members: Sequence[Sequence[int]], vocabulary_size: int) -> "Concepts":
        """Each concept as the list of its tokens; together they must cover ``0..vocabulary_size-1`` exactly once.

        Raises:
            ValueError: a token in no concept or in two, one outside the vocabulary, an empty concept.
        """
        require(vocabulary_size >= 1, "vocabulary_size", "at least one token", vocabulary_size)
        check_count("vocabulary_size", "tokens", vocabulary_size)
        require(all(len(tokens) > 0 for tokens in members), "members", "concepts of one token or more", members)
        owner = np.full(vocabulary_size, -1)
        for concept, tokens in enumerate(members):
            for token in tokens:
                require(0 <= token < vocabulary_size, "members", f"tokens in 0..{vocabulary_size - 1}", token)
                twice = f"in concept {owner[token]} and" if owner[token] != concept else "twice"
                require(owner[token] < 0, "members", "disjoint concepts", f"token {token} {twice} in concept {concept}")
                owner[token] = concept
        missing = np.flatnonzero(owner < 0)
        require(missing.size == 0, "members", "concepts that cover the vocabulary", f"tokens {missing.tolist()} in none")
        return cls(owner)

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens."""
        return self.of_token.size

    @cached_property
    def count(self) -> int:
        """G, the number of concepts."""
        return int(self.of_token.max()) + 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens per concept, ``[G]``."""
        return np.bincount(self.of_token)

    @typed
    def members(self, concept: int) -> np.ndarray:
        """The tokens of one concept, in increasing order.

        Raises:
            ValueError: a concept that does not exist.
        """
        require(0 <= concept < self.count, "concept", f"a concept in 0..{self.count - 1}", concept)
        return np.flatnonzero(self.of_token == concept)

    @cached_property
    def blocks(self) -> np.ndarray:
        """``[G, max size]`` token indices, each row one concept, padded with -1."""
        order = np.argsort(self.of_token, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        columns = np.arange(self.sizes.max())
        inside = columns < self.sizes[:, None]
        return np.where(inside, order[np.minimum(starts[:, None] + columns, order.size - 1)], -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Concepts) and np.array_equal(self.of_token, other.of_token)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Concepts(V={self.vocabulary_size}, G={self.count})"


@typed
def concept_log_probabilities(log_probabilities: Float[Array, "*batch V"], concepts: Concepts) -> Float[Array, "*batch G"]:
    """log of the total probability of each concept, ``log sum_{z in C} exp(log_probabilities[z])``.

    Works on unnormalised log-weights too: it is a log-sum-exp over each block of the partition, so that concepts of
    probability 1e-300 keep their relative precision. The result is in float32 at least.

    Raises:
        ValueError: a last axis that is not one of the tokens of `concepts`.
    """
    shape, v = np.shape(log_probabilities), concepts.vocabulary_size
    require(shape[-1:] == (v,), "log_probabilities", f"a last axis of the {v} tokens of concepts", f"shape {shape}")
    log_probabilities = wide(log_probabilities)
    blocks = concepts.blocks
    if np.array_equal(blocks.ravel(), np.arange(concepts.vocabulary_size)):
        # Equal sizes, consecutive tokens: a reshape, which the compiler fuses, where a gather would copy.
        values = log_probabilities.reshape(*log_probabilities.shape[:-1], *blocks.shape)
    else:
        values = jnp.where(blocks >= 0, log_probabilities[..., np.maximum(blocks, 0)], -jnp.inf)
    return jax.nn.logsumexp(values, axis=-1)
