"""The last steps of a decoder, norm and unembedding, as the theory of what is behind a norm takes them (N7, N8)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from sim.bridge.model import LanguageModel
from sim.bridge.split import Split
from theory import arc
from ufm._pytree import Leaf, pytree, static


@pytree
@dataclass(frozen=True)
class Readout:
    """The last steps of a decoder: ``softcapped(W (gamma * norm(x) + bias))``.

    Attributes:
        W: unembedding, ``[V, d]``.
        gamma, bias: of the last norm, ``[d]``.
        eps: of the norm.
        kind: "rms" or "layer".
        softcap: of the logits, if there is one.
    """

    W: Float[Array, "V d"] | Leaf
    gamma: Float[Array, " d"] | Leaf
    bias: Float[Array, " d"] | Leaf
    eps: Float[Array, ""] | Leaf
    kind: str = static()
    softcap: float | None = static()

    def arc(self, h: Float[Array, " d"], v: Float[Array, " d"]) -> arc.Arc:
        """The arc of a hidden state steered along v (N8)."""
        return arc.arc_of(self.W, self.gamma, self.bias, h, v, kind=self.kind, eps=self.eps)

    def limit(self, v: Float[Array, " d"], sign: int) -> Float[Array, " V"]:
        """The logits of infinite strength (S, proposition 4.1)."""
        return arc.limit(self.W, self.gamma, self.bias, v, sign, kind=self.kind, softcap=self.softcap)


def readout(lm: LanguageModel | Split) -> Readout:
    """The last norm and the unembedding of a model, or of the one that is split, in the widest floats there are."""
    decoder = lm.decoder
    a = decoder.config
    matrix = decoder.embedding if a.tied else decoder.unembedding
    bias = jnp.asarray(decoder.norm_bias[...], float) if a.norm == "layer" else None
    gamma = jnp.asarray(decoder.norm[...], float)
    scaled = a.logit_scale * jnp.asarray(matrix[...], float)
    return Readout(scaled, gamma, bias, jnp.asarray(a.eps, float), a.norm, a.final_softcap)
