"""Instances of statements about several states before a norm: a decoder, states of prompts, weights that contrast them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float

from theory import tempered
from theory.statement import Domain
from ufm import NormalisedUFM, contrast, contrastive, fit, init_normalised, norm, weighted
from ufm._pytree import Leaf, pytree, static
from ufm.normalised import KINDS, as_seen
from ufm.precision import full

VOCABULARY, WIDTH, STATES = 6, 4, 5
"""The size of random instances."""


@pytree
@dataclass(frozen=True)
class States:
    """Hidden states to be steered along ``v' = sum_j w_j h_j / size_j`` and decoded by ``W (gamma * norm(h + alpha v'))``.

    Attributes:
        W: unembedding, ``[V, d]``.
        gamma: gain of the norm, ``[d]``.
        H: hidden states, ``[m, d]``.
        contrast: w, which sums to 0, ``[m]``.
        target: a set of tokens, ``[V]``.
        eps: of the norm.
        kind: "rms" or "layer".
    """

    W: Float[Array, "V d"] | Leaf
    gamma: Float[Array, " d"] | Leaf
    H: Float[Array, "m d"] | Leaf
    contrast: Float[Array, " m"] | Leaf
    target: Bool[Array, " V"] | Leaf
    eps: Float[Array, ""] | Leaf
    kind: str = static(default="rms")

    @property
    def v(self) -> Float[Array, " d"]:
        """v', of normalised states."""
        return tempered.direction(self.H, self.contrast, kind=self.kind, eps=self.eps)

    @property
    def length(self) -> Float[Array, ""]:
        """The length of v' in the norm's eyes."""
        return jnp.linalg.norm(as_seen(self.v, self.kind))

    @property
    def cosines(self) -> Float[Array, " m"]:
        """Between each state and v', eps counted as a coordinate of the state that v' has not, ``[m]``."""
        return as_seen(self.H, self.kind) @ as_seen(self.v, self.kind) / (self.sizes(self.H) * self.length)

    def sizes(self, h: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """What the norm divides states by (`theory.tempered.size_of`)."""
        return tempered.size_of(h, kind=self.kind, eps=self.eps)

    @full
    def decode(self, h: Float[Array, "*n d"]) -> Float[Array, "*n V"]:
        """log-probabilities of states, through the norm itself."""
        return jax.nn.log_softmax(norm(h, self.gamma, kind=self.kind, eps=self.eps) @ self.W.T)


def kinds(instance: States) -> tuple[States, ...]:
    """The arrays of an instance under each kind of norm."""
    return tuple(replace(instance, kind=kind) for kind in KINDS)


def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[tuple[Array, Array], States]:
    """Random states: in half of the instances of one size, in half of sizes that differ by up to a factor of 100.

    |P| and |N| are 1 to 4, the target is 1 to 5 of the tokens, and the norm has an eps of 1e-8 to 0.1. In a fifth of the
    instances the unembedding tells tokens of the target apart from others but not from each other.
    """
    del families
    v, d, m = VOCABULARY, WIDTH, STATES
    lengths = [5, v, v * d, d, m * d, m]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, tokens, of_w, of_gamma, of_h, of_size = jnp.split(u, np.cumsum(lengths)[:-1])
    h = ndtri(of_h).reshape(m, d)
    # States of one size have no mean, and so one size under either norm.
    centred = as_seen(h, "layer")
    of_one_size = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True))
    positive = jnp.arange(m) < 1 + jnp.floor(levels[0] * (m - 1))
    # The tokens of lowest rank, 1 to V - 1 of them.
    target = jnp.sum(tokens < tokens[:, None], axis=1) < 1 + jnp.floor(levels[1] * (v - 1))
    rows = ndtri(of_w).reshape(v, d)
    of_two_kinds = jnp.where(target[:, None], rows[0], rows[1])
    return (positive, target), States(
        W=10 ** (-1 + 1.5 * levels[2]) * jnp.where(levels[0] * 5 % 1 < 0.2, of_two_kinds, rows),
        gamma=1 + 0.3 * ndtri(of_gamma),
        H=jnp.where(levels[3] < 0.5, of_one_size, h * 10 ** (2 * of_size - 1)[:, None]),
        contrast=jnp.zeros(m),
        target=jnp.zeros(v),
        eps=10 ** (-8 + 7 * levels[4]),
    )


def assemble(design: tuple[Array, Array], parameters: States) -> States:
    """The instance of sets P, the other states being N, and T."""
    positive, target = design
    weights = positive / jnp.sum(positive) - ~positive / jnp.sum(~positive)
    return replace(parameters, contrast=weights.astype(parameters.H.dtype), target=target)


@dataclass(frozen=True)
class MeasuredStates:
    """A sweep of a trained model with a final norm along v'.

    Attributes:
        instance: its states and decoder.
        alphas: an even grid of strengths, ``[K]``.
        log_probabilities: measured, ``[K, m, V]`` nats.
    """

    instance: States
    alphas: Float[np.ndarray, " K"]
    log_probabilities: Float[np.ndarray, "K m V"]


def of_two_rows() -> States:
    """Four tokens, two of them the target, with a row of the unembedding each for the two: what attains ceilings."""
    rows = jnp.asarray([[1.0, 1.5, -1.0], [1.0, -0.5, -1.5]])
    states = jnp.asarray([[4.0, 4.0, -4.0], [1.0, 3.0, 3.0], [-1.0, 3.0, 3.0]])
    target, weights = jnp.asarray([True, True, False, False]), jnp.asarray([0.5, 0.5, -1.0])
    return States(jnp.repeat(rows, 2, axis=0), jnp.ones(3), states, weights, target, jnp.asarray(1e-5))


_GRID = np.linspace(-20, 20, 161)


def measure(instance: States) -> MeasuredStates:
    """The sweep of the model of an instance over strengths from -20 to 20."""
    model = NormalisedUFM(instance.W, instance.H.T, instance.gamma, kind=instance.kind, eps=float(instance.eps))
    steered = model.decode(instance.H + _GRID[:, None, None] * instance.v)
    return MeasuredStates(instance, _GRID, np.asarray(jax.nn.log_softmax(steered)))


def measured(seed: int = 0) -> list[MeasuredStates]:
    """Sweeps of models with either norm, trained from states of unequal sizes, and of the decoder of `of_two_rows`."""
    shares = [0.6, 0.3, 0.1, 0.5, 0.3, 0.2, 0.4, 0.4, 0.2]
    corpus = weighted((3, 3, 3), shares, [1 / 3] * 9, 0.05, length=None, contexts_per_concept=3)
    target, weights = corpus.concepts.of_token == 0, contrast(corpus.n_contexts, *contrastive(corpus, target=0, opposite=1))
    trained = []
    for kind in KINDS:
        start = init_normalised(jax.random.key(seed), corpus, 8, kind=kind, eps=1e-5)
        start = replace(start, H=start.H * jnp.geomspace(0.2, 5, corpus.n_contexts))
        model: Any = fit(corpus, start=start, tolerance=1e-8, max_steps=2000).model
        trained.append(States(model.W, model.gamma, model.H.T, weights, jnp.asarray(target), jnp.asarray(model.eps), kind))
    return [measure(instance) for instance in (*trained, of_two_rows())]


STATES_BEFORE_A_NORM = Domain("states before a norm", sample, assemble, measured=measured, kind=States)
"""Several hidden states steered before a final norm (`States`)."""
