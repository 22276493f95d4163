"""Instances of statements about a final norm: a decoder, one hidden state, one steering vector, and sweeps of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from theory import arc
from theory.statement import Domain
from ufm import NormalisedUFM, contrast, contrastive, difference_of_means, fit, init_normalised, norm, uniform
from ufm._pytree import Leaf, pytree, static
from ufm.normalised import KINDS, as_seen
from ufm.precision import full

VOCABULARY, WIDTH = 6, 4
"""The size of random decoders."""

ANGLES = np.linspace(-1.5, 1.5, 13)
"""Angles at which claims about the whole arc are checked: strengths from -14 to 14 widths around the centre."""


@pytree
@dataclass(frozen=True)
class NormInstance:
    """A hidden state to be steered and decoded by ``W (gamma * norm(h + alpha v) + bias)``.

    Attributes:
        W: unembedding, ``[V, d]``.
        gamma, bias: of the norm, ``[d]``.
        h: hidden state, ``[d]``.
        v: steering vector, ``[d]``.
        kind: "rms" or "layer".
    """

    W: Float[Array, "V d"] | Leaf
    gamma: Float[Array, " d"] | Leaf
    bias: Float[Array, " d"] | Leaf
    h: Float[Array, " d"] | Leaf
    v: Float[Array, " d"] | Leaf
    kind: str = static(default="rms")

    @property
    def arc(self) -> arc.Arc:
        """The arc that its sweep traces (`theory.arc.arc_of`)."""
        return arc.arc_of(self.W, self.gamma, self.bias, self.h, self.v, kind=self.kind)

    @full
    def decode(self, alpha: Float[Array, ""]) -> Float[Array, " V"]:
        """Logits of the steered state, through the norm itself."""
        return norm(self.h + alpha * self.v, self.gamma, self.bias, kind=self.kind) @ self.W.T

    @property
    def centred(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """h and v as the norm sees them: less their mean for "layer"."""
        return as_seen(self.h, self.kind), as_seen(self.v, self.kind)


def kinds(instance: NormInstance) -> tuple[NormInstance, ...]:
    """The arrays of an instance under each kind of norm."""
    return tuple(NormInstance(instance.W, instance.gamma, instance.bias, instance.h, instance.v, kind) for kind in KINDS)


def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[tuple[()], NormInstance]:
    """A random instance, from nearly parallel h and v to orthogonal ones, from flat to sharp unembeddings.

    In half of them h and v have mean 0 and are orthogonal, to both norms: the arc is centred at strength 0.
    """
    del families
    v, d = VOCABULARY, WIDTH
    lengths = [4, v * d, d, d, d, d]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, *normal = jnp.split(u, np.cumsum(lengths)[:-1])
    of_w, of_gamma, of_bias, of_h, of_v = map(ndtri, normal)
    centred_h, centred_v = of_h - jnp.mean(of_h), of_v - jnp.mean(of_v)
    orthogonal = centred_h - (centred_h @ centred_v) / (centred_v @ centred_v) * centred_v
    is_generic = levels[3] < 0.5
    of_v, across = jnp.where(is_generic, of_v, centred_v), 10 ** (-2 + 2 * levels[0])
    return (), NormInstance(
        W=10 ** (-1 + 1.7 * levels[1]) * of_w.reshape(v, d),
        gamma=1 + 0.3 * of_gamma,
        bias=0.3 * of_bias,
        h=across * jnp.where(is_generic, of_h, orthogonal) + jnp.where(is_generic, 2 * (levels[2] - 0.5), 0) * of_v,
        v=of_v,
    )


def assemble(design: tuple[()], parameters: NormInstance) -> NormInstance:
    """All of an instance is smooth."""
    del design
    return parameters


@dataclass(frozen=True)
class MeasuredNorm:
    """A sweep of a model with a final norm.

    Attributes:
        instance: the hidden state of one context, the steering vector, the decoder.
        alphas: an even grid of strengths, ``[K]``.
        logits: measured, ``[K, V]``.
    """

    instance: NormInstance
    alphas: Float[np.ndarray, " K"]
    logits: Float[np.ndarray, "K V"]

    @property
    def log_probabilities(self) -> Float[np.ndarray, "K V"]:
        """log softmax of the logits, nats."""
        return self.logits - np.logaddexp.reduce(self.logits, axis=-1, keepdims=True)


def spread_out() -> NormInstance:
    """Six tokens, one of which has four bumps: the others beat it one after the other, with valleys between them.

    Token 0 is at the origin of the plane of h and v, the others on a circle around it.
    """
    angles = np.linspace(-1.2, 1.2, VOCABULARY - 1)
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # A plane on which LayerNorm takes nothing away.
    h, v = np.array([1.0, 0.0, -1.0]), np.array([1.0, -2.0, 1.0])
    plane = np.stack([h / np.linalg.norm(h), v / np.linalg.norm(v)])
    W = np.concatenate([np.zeros((1, 2)), corners]) @ plane * 40 / np.sqrt(3)
    return NormInstance(jnp.asarray(W), jnp.ones(3), jnp.zeros(3), jnp.asarray(h), jnp.asarray(v))


def measured(seed: int = 0) -> list[MeasuredNorm]:
    """Sweeps of trained models with either norm, and of the decoder of `spread_out`."""
    corpus, alphas = uniform(), np.linspace(-20, 20, 401)
    positive, negative = contrastive(corpus, target=0, opposite=1)
    weights = contrast(corpus.n_contexts, positive, negative)
    sweeps = []
    for kind in KINDS:
        start = init_normalised(jax.random.key(seed), corpus, 8, kind=kind, biased=kind == "layer")
        model: Any = fit(corpus, start=start, tolerance=1e-8, max_steps=2000).model
        assert isinstance(model, NormalisedUFM)
        v = difference_of_means(model, jnp.arange(corpus.n_contexts), weights)
        bias = jnp.zeros_like(model.gamma) if model.bias is None else model.bias
        for context in (0, 80):
            instance = NormInstance(model.W, model.gamma, bias, model.H[:, context], v, kind)
            sweeps.append(MeasuredNorm(instance, alphas, np.asarray(model.decode(instance.h + alphas[:, None] * v))))
    explicit = spread_out()
    model = NormalisedUFM(explicit.W, explicit.h[:, None], explicit.gamma)
    sweeps.append(MeasuredNorm(explicit, alphas, np.asarray(model.decode(explicit.h + alphas[:, None] * explicit.v))))
    return sweeps


NORMS = Domain("norms", sample, assemble, measured=measured, kind=NormInstance)
"""Hidden states steered before a final norm (`NormInstance`)."""
