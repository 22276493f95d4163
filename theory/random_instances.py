"""Random instances, in families: a discrete design and smooth parameters, assembled into a next-token table.

The parts are apart so that one thing serves three uses: `draw` samples both (the instances route), gradient descent
moves the parameters of a design (refutation), and a family is chosen by name. Every family has the rows of the weighted
family of S, remark 3.4,

    p_j(z) = (1 - eps) gamma_{j,z}   for z in the concept of c_j,      eps / (G - 1) omega_{j,z}   outside it,

with gamma and omega summing to 1 over each concept, and more or less freedom in them:

============= ======================================== ==================================================
family        gamma, omega                             assumption 1 of S
============= ======================================== ==================================================
uniform       both even over a concept                 holds
weighted      shares of the token                      holds
tied          omega = gamma: equal log-odds            holds
per-context-a gamma depends on the context             a does not exist, b does: S, appendix B.1
per-context-b omega depends on the context             b does not exist
mixed         rows are mixtures of weighted rows       a context belongs to its concept only in part
free          any table                                says nothing
============= ======================================== ==================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from theory.instance import Instance
from ufm._check import known_names, require, typed
from ufm._pytree import Leaf, pytree

FAMILIES = ("uniform", "weighted", "tied", "per-context-a", "per-context-b", "mixed", "free")
"""The families that can be drawn, by name."""

SEPARATED = ("uniform", "weighted", "tied", "per-context-a")
"""The families whose log-odds have the sign that theorems about a target need."""

VOCABULARY, CONTEXTS, CONCEPTS = 7, 6, 3
"""The size of drawn tables. Concepts number 2 or 3, of 1 to 6 tokens and 1 to 5 contexts each; contexts that come out
equal, and tokens of equal log-odds, stand for smaller tables."""


@pytree
@dataclass(frozen=True)
class Design:
    """The discrete part of an instance.

    Attributes:
        family: index into `FAMILIES`.
        count: how many concepts there are, 2 or 3.
        of_token, of_context: the concept of each, ``[V]`` and ``[m]``.
        target: the target concept.
        positive, negative: P and N, ``[m]``.
    """

    family: Int[Array, ""] | Leaf
    count: Int[Array, ""] | Leaf
    of_token: Int[Array, " V"] | Leaf
    of_context: Int[Array, " m"] | Leaf
    target: Int[Array, ""] | Leaf
    positive: Bool[Array, " m"] | Leaf
    negative: Bool[Array, " m"] | Leaf


@pytree
@dataclass(frozen=True)
class Parameters:
    """The smooth part of an instance; any real numbers give one.

    Attributes:
        gamma, omega: logits of the shares of tokens within concepts, ``[m, V]``. Families with fewer shares use row 0.
        slack: log of the distance, in logits, of eps below the largest that keeps every a above every b.
        mixture: logits of the share of each concept in a mixed context, beside 0 for its own, ``[m, G]``.
        weights: logits of pi, ``[m]``.
    """

    gamma: Float[Array, "m V"] | Leaf
    omega: Float[Array, "m V"] | Leaf
    slack: Float[Array, ""] | Leaf
    mixture: Float[Array, "m G"] | Leaf
    weights: Float[Array, " m"] | Leaf


def assemble(design: Design, parameters: Parameters) -> Instance:
    """The instance of a design and its parameters: smooth in the parameters; use under `jax.vmap`."""
    own = design.of_token == design.of_context[:, None]
    members = _rows_of(design.of_token, design.count)
    count = design.count.astype(parameters.gamma.dtype)

    def family(*names):
        return jnp.any(design.family == np.array([FAMILIES.index(name) for name in names]))

    even = -jnp.log(jnp.sum(members, axis=-1).astype(parameters.gamma.dtype))[design.of_token]
    gamma, omega = (_within_concepts(shares, members, design.of_token) for shares in (parameters.gamma, parameters.omega))
    shared = jnp.where(family("uniform"), even, gamma[0])
    log_gamma = jnp.where(family("per-context-a"), gamma, shared)
    log_omega = jnp.where(family("tied", "uniform"), shared, jnp.where(family("per-context-b"), omega, omega[0]))

    # Every a above every b is eps / (1 - eps) < (G - 1) min gamma / omega; even shares give the range of S for eps.
    least_gamma = jnp.min(jnp.where(own, log_gamma, jnp.inf), axis=0)
    most_omega = jnp.max(jnp.where(own, -jnp.inf, log_omega), axis=0)
    logit_epsilon = jnp.log(count - 1) + jnp.min(least_gamma - most_omega) - jnp.exp(parameters.slack)
    noise = jax.nn.log_sigmoid(logit_epsilon) - jnp.log(count - 1)
    structured = jnp.where(own, jax.nn.log_sigmoid(-logit_epsilon) + log_gamma, noise + log_omega)

    # A mixed context takes its share of every concept's row, of which each concept's first context serves as the pattern.
    share = jax.nn.log_softmax(
        jnp.where(jnp.arange(members.shape[0]) == design.of_context[:, None], 0.0, parameters.mixture - 1)
    )
    first = jnp.argmax(jnp.arange(members.shape[0])[:, None] == design.of_context, axis=-1)
    mixed = jax.nn.logsumexp(share[:, :, None] + structured[first], axis=1)
    rows = jnp.where(family("free"), parameters.gamma, jnp.where(family("mixed"), mixed, structured))

    positive, negative = design.positive.astype(rows.dtype), design.negative.astype(rows.dtype)
    return Instance(
        log_p=jax.nn.log_softmax(rows),
        weights=jax.nn.softmax(parameters.weights),
        concept=design.of_context,
        members=members,
        contrast=positive / positive.sum() - negative / negative.sum(),
        target=design.target,
    )


@typed
def sample(key: jax.Array, families: Sequence[str] = SEPARATED) -> tuple[Design, Parameters]:
    """A random design of one of the families, with random parameters; use under `jax.vmap`.

    |P|, |N| and the setting (contrastive or random negatives) are random. The spread of shares and the slack range from
    ordinary to nearly degenerate: probabilities down to 1e-20, log-odds from 1e-3 to 40 nats.

    Raises:
        ValueError: a family that does not exist; the message lists them.
    """
    check_families(families)
    g, m, v = CONCEPTS, CONTEXTS, VOCABULARY
    # One call for all the randomness, cut up below: the generator is by far the slowest part to compile.
    lengths = [6, 2, m, m, v, m, m * v, m * v, m * g, m]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, sizes, order_p, order_n, tokens, contexts, gamma, omega, mixture, weights = jnp.split(u, np.cumsum(lengths)[:-1])

    family = jnp.asarray([FAMILIES.index(name) for name in families])[_choice(levels[0], len(families))]
    count = 2 + _choice(levels[1], g - 1)
    # The first tokens and contexts see to it that no concept is empty.
    of_token = jnp.where(jnp.arange(v) < count, jnp.arange(v), _choice(tokens, count))
    of_context = jnp.where(jnp.arange(m) < count, jnp.arange(m), _choice(contexts, count))
    target = _choice(levels[2], count)
    # Half of the instances are contrastive, with any other concept as the opposite; half have random negatives.
    setting = _choice(levels[3], 2 * (count - 1))
    opposite = (target + 1 + setting // 2) % count
    negatives = jnp.where(setting % 2 == 0, of_context == opposite, of_context != target)
    design = Design(
        family=family,
        count=count,
        of_token=of_token,
        of_context=of_context,
        target=target,
        positive=_subset(of_context == target, sizes[0], order_p),
        negative=_subset(negatives, sizes[1], order_n),
    )
    spread = 10 ** (-1.5 + 2.3 * levels[4])
    parameters = Parameters(
        gamma=spread * ndtri(gamma).reshape(m, v),
        omega=spread * ndtri(omega).reshape(m, v),
        slack=jnp.log(10.0) * (-2.5 + 3.5 * levels[5]),
        mixture=ndtri(mixture).reshape(m, g),
        weights=ndtri(weights),
    )
    return design, parameters


@typed
def draw(key: jax.Array, families: Sequence[str] = SEPARATED) -> Instance:
    """A random instance of one of the families (`sample`, assembled); use under `jax.vmap`."""
    return assemble(*sample(key, families))


@typed
def check_families(families: Sequence[str]) -> None:
    """Refuse names that are not in `FAMILIES`.

    Raises:
        ValueError: no family, or one that does not exist.
    """
    known_names("families", families, FAMILIES)
    require(len(families) > 0, "families", f"some of {', '.join(FAMILIES)}", "none")


def _choice(u: Float[Array, "*s"], n: Int[Array, ""] | int) -> Int[Array, "*s"]:
    """A whole number in 0..n-1 from a uniform one."""
    return jnp.floor(u * n).astype(int)


def _rows_of(of_token: Int[Array, " V"], count: Int[Array, ""]) -> Bool[Array, "G V"]:
    """Membership of each concept; if there are fewer than the rows, the last one is listed again."""
    return of_token == jnp.minimum(jnp.arange(CONCEPTS), count - 1)[:, None]


def _within_concepts(logits: Float[Array, "n V"], members: Bool[Array, "G V"], of_token: Int[Array, " V"]):
    """log-softmax over the tokens of each concept."""
    totals = jax.nn.logsumexp(jnp.where(members, logits[:, None, :], -jnp.inf), axis=-1)
    return logits - totals[:, of_token]


def _subset(pool: Bool[Array, " m"], size: Float[Array, ""], order: Float[Array, " m"]) -> Bool[Array, " m"]:
    """A non-empty subset of `pool`: its share `size`, the members of lowest `order`."""
    # Counting is quicker to compile than sorting.
    rank = jnp.sum(pool & (order < order[:, None]), axis=1)
    return pool & (rank < 1 + jnp.floor(size * pool.sum()))
