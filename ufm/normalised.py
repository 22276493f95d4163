"""The normalised unconstrained features model: a final norm between the hidden state and the unembedding.

    decode(h) = W (gamma * norm(h) + bias),      norm(h) = h / sqrt(mean(h^2) + eps),

RMSNorm as it stands ("rms"), LayerNorm with h less its mean ("layer"). What is decoded then depends on the direction of
h + alpha v and not on its length, so that steering turns where it translated: `theory.arc` has the closed forms.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ufm._check import finite, in_range, require, typed
from ufm._numerics import power_for_squares
from ufm._pytree import Leaf, pytree, static
from ufm.corpus import Corpus
from ufm.model import FreeFeatures, init
from ufm.precision import wide

KINDS = ("rms", "layer")
"""The norms known by name."""


def as_seen(h: Float[Array, "*n d"], kind: str) -> Float[Array, "*n d"]:
    """What a norm of this kind scales to unit size: for "layer" h less its mean, for "rms" h itself.

    Raises:
        ValueError: an unknown kind.
    """
    require(kind in KINDS, "kind", f"one of {KINDS}", repr(kind))
    return h - jnp.mean(h, axis=-1, keepdims=True) if kind == "layer" else h


@typed
def norm(
    h: Float[Array, "*n d"],
    gamma: Float[Array, " d"] | None = None,
    bias: Float[Array, " d"] | None = None,
    *,
    kind: str = "rms",
    eps: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*n d"]:
    """``gamma * h / sqrt(mean(h^2) + eps) + bias`` over the last axis, of h less its mean if `kind` is "layer".

    Args:
        h: hidden states, ``[*n, d]``.
        gamma: gain, ``[d]``; 1 if left out.
        bias: ``[d]``; 0 if left out.
        kind: one of `KINDS`.
        eps: added to the mean square. With 0 a hidden state of 0 (for "layer": a constant one) becomes NaN.

    Returns:
        In float32 at least. Hidden states may be as large and as small as floats are, though their squares are none.

    Raises:
        ValueError: an unknown kind; outside transformations, a negative eps, a hidden state that is not finite.
    """
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    if not isinstance(h, jax.core.Tracer):
        finite("h", h)
    h, size = _scaled(wide(h), eps)
    h = as_seen(h, kind)
    out = h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps * size * size)
    out = out if gamma is None else gamma * out
    return out if bias is None else out + bias


def _scaled(h: Float[Array, "*n d"], eps: Float[Array, ""] | float) -> tuple[Float[Array, "*n d"], Float[Array, "*n 1"]]:
    """Hidden states whose squares are floats, and the power of two that they are multiplied with: 1 for ordinary ones."""
    most = jnp.finfo(h.dtype).maxexp
    # A larger eps would overflow where tiny states are scaled up, and hides their squares as they are.
    size = power_for_squares(h, tiny=eps < 2.0 ** (most - 2 * (3 * most // 5) - 2))
    return h * size, size


@pytree
@dataclass(frozen=True)
class NormalisedUFM(FreeFeatures):
    """Parameters of a normalised unconstrained features model; `ufm.fit` trains all of them, given one as `start`.

    Attributes:
        W: decoder, ``[V, d]``.
        H: context embeddings, ``[d, m]``; column j is h_j, as it is before the norm.
        gamma: gain of the norm, ``[d]``.
        bias: bias of the norm, ``[d]``; None for a norm without one.
        kind: one of `KINDS`.
        eps: of the norm.
    """

    W: Float[Array, "V d"] | Leaf
    H: Float[Array, "d m"] | Leaf
    gamma: Float[Array, " d"] | Leaf
    bias: Float[Array, " d"] | Leaf = None
    kind: str = static(default="rms")
    eps: float = static(default=0.0)

    def read(self, h: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The decoder's input: ``gamma * norm(h) + bias``."""
        return norm(h, self.gamma, self.bias, kind=self.kind, eps=self.eps)


@typed
def init_normalised(
    key: jax.Array,
    corpus: Corpus,
    d: int,
    *,
    kind: str = "rms",
    eps: float = 0.0,
    biased: bool = False,
    scale: float = 0.5,
    dtype: DTypeLike | None = None,
) -> NormalisedUFM:
    """Random W and H as in `ufm.init`, gain 1, bias 0.

    Args:
        key: a `jax.random.key`.
        corpus: gives V and m.
        d: embedding width. The norm takes one dimension away ("rms") or two ("layer"): allow for it.
        kind: one of `KINDS`.
        eps: of the norm, at least 0.
        biased: whether the norm has a bias.
        scale: standard deviation of W and H.
        dtype: of the parameters; that of the corpus if left out.

    Raises:
        ValueError: an unknown kind, a negative eps, d too small for a norm to leave a direction (1, or 2 for "layer").
    """
    require(kind in KINDS, "kind", f"one of {KINDS}", repr(kind))
    require(eps >= 0, "eps", "a number of at least 0", eps)
    least = 2 if kind == "rms" else 3
    require(d >= least, "d", f"a width of at least {least}, which the norm turns in a circle", d)
    free = init(key, corpus, d, scale=scale, dtype=dtype)
    gamma = jnp.ones(d, free.W.dtype)
    return NormalisedUFM(free.W, free.H, gamma, 0 * gamma if biased else None, kind, eps)
