"""Instances: what a statement is about. A corpus, a contrast of its contexts, and the target concept.

`Instance` is a pytree, so that a statement's margin is a function that `jax.vmap` runs over thousands of them.
`draw` samples random instances that satisfy assumption 1 of S (or its weaker form with a depending on the context), and
`Measured` is an instance together with a trained model that was swept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from theory import tilting
from ufm import Concepts, Corpus, Steerable, concept_log_probabilities, contrast, log_odds
from ufm._check import require
from ufm._pytree import Leaf


@partial(jax.tree_util.register_dataclass, data_fields=["corpus", "contrast", "target"], meta_fields=[])
@dataclass(frozen=True)
class Instance:
    """A corpus to be steered.

    Attributes:
        corpus: with at least two concepts.
        contrast: 1/|P| on P, -1/|N| on N, ``[m]`` (`ufm.contrast`).
        target: the concept that P is taken from.
    """

    corpus: Corpus | Leaf
    contrast: Float[Array, " m"] | Leaf
    target: Int[Array, ""] | Leaf

    @property
    def log_p(self) -> Float[Array, "m V"]:
        """log p_j(z), nats."""
        return self.corpus.log_p

    @property
    def log_odds(self) -> Float[Array, " V"]:
        """M, nats (S, definition 3.2)."""
        return log_odds(self.corpus, self.contrast)

    @property
    def in_target(self) -> Bool[Array, " V"]:
        """Which tokens are of the target concept."""
        return jnp.asarray(self.corpus.concepts.of_token) == self.target

    @property
    def members(self) -> Bool[Array, "G V"]:
        """Which tokens each concept has."""
        concepts = self.corpus.concepts
        return jnp.asarray(concepts.of_token == np.arange(concepts.count)[:, None])


def make_instance(
    corpus: Corpus, positive: Sequence[int] | np.ndarray, negative: Sequence[int] | np.ndarray, target: int
) -> Instance:
    """An instance from explicit P and N, checked.

    Raises:
        ValueError: as `ufm.contrast`; a target that does not exist; a corpus of one concept; P outside the target or N
            inside it.
    """
    count = corpus.concepts.count
    require(count >= 2, "corpus", "at least two concepts to contrast", count)
    require(0 <= target < count, "target", f"a concept in 0..{count - 1}", target)
    weights = contrast(corpus.n_contexts, positive, negative)
    concept = np.asarray(corpus.concept)
    wrong_p, wrong_n = [j for j in positive if concept[j] != target], [j for j in negative if concept[j] == target]
    require(not wrong_p, "positive", f"contexts of the target concept {target}", f"contexts {wrong_p} of others")
    require(not wrong_n, "negative", f"contexts outside the target concept {target}", f"contexts {wrong_n} of it")
    return Instance(corpus, weights, jnp.asarray(target))


@dataclass(frozen=True)
class Measured:
    """An instance with a trained model of its corpus, swept.

    Attributes:
        instance: what was trained and steered.
        model: the trained model (`ufm.UFM`).
        v: its steering vector, ``[d]``.
        alphas: an even grid of strengths that contains 0, ``[K]``.
        log_probabilities: measured log softmax of the steered logits, ``[m, K, V]`` nats.
    """

    instance: Instance
    model: Steerable
    v: Float[Array, " d"]
    alphas: Float[np.ndarray, " K"]
    log_probabilities: Float[np.ndarray, "m K V"]

    @property
    def step(self) -> float:
        """The distance between two strengths of the grid."""
        return float(self.alphas[1] - self.alphas[0])

    @cached_property
    def concept_log_odds(self) -> Float[np.ndarray, "m K G"]:
        """Measured ``logit F_C`` of every concept, nats."""
        members = np.asarray(self.instance.members)
        with np.errstate(divide="ignore"):
            inside = [np.logaddexp.reduce(self.log_probabilities[..., mask], axis=-1) for mask in members]
            outside = [np.logaddexp.reduce(self.log_probabilities[..., ~mask], axis=-1) for mask in members]
        return np.stack([i - o for i, o in zip(inside, outside, strict=True)], axis=-1)


FAMILIES = ("uniform", "weighted", "tied", "per-context")
"""What `draw` draws from. "tied" is the weighted family with omega = gamma: equal log-odds, unequal probabilities."""

SHAPES: tuple[tuple[int, ...], ...] = ((1, 2, 4), (3, 3))
"""Concept sizes that `draw` is used with: three unequal concepts, one of them a single token; two equal ones."""


def draw(key: jax.Array, sizes: Sequence[int], *, contexts_per_concept: int = 2) -> Instance:
    """A random instance of random family, |P|, |N| and setting (contrastive or random); use under `jax.vmap`.

    The spread of shares and the noise eps range from ordinary to nearly degenerate (probabilities down to 1e-20, log-odds
    from 1e-3 to 40 nats). Assumption 1 holds in every instance, but in the per-context family, where a depends on the
    context and b does not (S, appendix B.1).

    Args:
        key: a `jax.random.key`.
        sizes: tokens per concept, at least two concepts.
        contexts_per_concept: how many contexts each concept has.
    """
    concepts = Concepts.from_sizes(sizes)
    g, v = concepts.count, concepts.vocabulary_size
    owner = jnp.repeat(jnp.arange(g), contexts_per_concept)
    m = owner.size
    # One call for all the randomness, cut up below: the generator is by far the slowest part to compile.
    lengths = [5, 1, 1, m, m, m, (m + 1) * v]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, p_size, n_size, p_order, n_order, pi, shares = jnp.split(u, np.cumsum(lengths)[:-1])
    family = jnp.floor(levels[0] * len(FAMILIES)).astype(int)

    spread_of_shares = 10 ** (-1.5 + 2.3 * levels[1])
    log_shares = _within_concepts(spread_of_shares * ndtri(shares).reshape(m + 1, v), concepts)
    even = jnp.broadcast_to(-jnp.log(concepts.sizes)[concepts.of_token], (v,))
    log_gamma = jnp.select([family == 0, family == 3], [even, log_shares[:m]], log_shares[0])
    log_omega = jnp.select([family == 0, family == 2], [even, log_shares[0]], log_shares[m])

    # Assumption 1 is eps / (1 - eps) < (G - 1) min gamma / omega; uniform shares give S's range for eps.
    inside = jnp.asarray(concepts.of_token) == owner[:, None]
    bound = jnp.log(g - 1) + jnp.min(jnp.where(inside, log_gamma - log_omega, jnp.inf))
    logit_epsilon = bound - 10 ** (-2.5 + 3.5 * levels[2])
    log_rows = jax.nn.log_softmax(
        jnp.where(
            inside,
            jax.nn.log_sigmoid(-logit_epsilon) + log_gamma,
            jax.nn.log_sigmoid(logit_epsilon) - jnp.log(g - 1) + log_omega,
        )
    )

    target = jnp.floor(levels[3] * g).astype(int)
    # Half of the instances are contrastive, with any other concept as the opposite; half have random negatives.
    setting = jnp.floor(levels[4] * 2 * (g - 1)).astype(int)
    opposite = (target + 1 + setting // 2) % g
    negatives = jnp.where(setting % 2 == 0, owner == opposite, owner != target)
    positive = _subset(owner == target, p_size[0], p_order)
    negative = _subset(negatives, n_size[0], n_order)
    corpus = Corpus(
        log_rows=log_rows,
        row=jnp.arange(m),
        weights=jax.nn.softmax(ndtri(pi)),
        concept=owner,
        concepts=concepts,
    )
    return Instance(corpus, positive / positive.sum() - negative / negative.sum(), target)


@jax.jit
def peaks(one: Instance) -> Float[Array, "m V"]:
    """``alpha_{j,z}`` for every context and token (`theory.tilting.peaks`)."""
    return jax.vmap(lambda log_p: tilting.peaks(log_p, one.log_odds))(one.log_p)


def says_nothing(one: Instance) -> Bool[Array, ""]:
    """Whether M is constant, so that steering does nothing and theorem 3.3 of S is empty."""
    return tilting.is_constant(one.log_p, one.log_odds)


def _within_concepts(logits: Float[Array, "n V"], concepts: Concepts) -> Float[Array, "n V"]:
    """log-softmax over the tokens of each concept."""
    return logits - concept_log_probabilities(logits, concepts)[:, concepts.of_token]


def _subset(pool: Bool[Array, " m"], size: Float[Array, ""], order: Float[Array, " m"]) -> Float[Array, " m"]:
    """A non-empty subset of `pool`, as 0.0 and 1.0: its share `size`, the members of lowest `order`."""
    rank = jnp.argsort(jnp.argsort(jnp.where(pool, order, jnp.inf)))
    return (pool & (rank < 1 + jnp.floor(size * pool.sum()))).astype(float)
