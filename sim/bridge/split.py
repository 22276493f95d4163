"""A language model cut after one of its blocks, as the split of `ufm.steerable`: what is steered is its residual stream.

Layer l is the output of block l, counted from 0. The stream of all positions is one hidden state, and says itself which
positions are padding: position t has d numbers of the stream and a flag. So contexts may differ in length, a steering vector
adds 0 to the flags, and whatever is written against the split works: sweeps, curves, difference of means, derivatives.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.decoder import Decoder, Index, only_at, positions_of
from ufm._check import require
from ufm._pytree import Leaf


@partial(
    jax.tree_util.register_dataclass, data_fields=["state", "tokens", "seen", "layer"], meta_fields=["graph", "last_only"]
)
@dataclass(frozen=True)
class Split:
    """A decoder cut after block `layer`, and the contexts it is asked about. It shares the decoder's parameters.

    Attributes:
        state: the parameters.
        tokens: the contexts, padded to one length, ``[m, T]``.
        seen: which tokens are not padding, ``[m, T]``.
        layer: after which block, 0 to L - 1. An array: programs are the same for all layers.
        graph: the structure of the decoder.
        last_only: whether `decode` gives the logits of the last position that is seen, or of all.
    """

    state: Any
    tokens: Int[Array, "m T"] | Leaf
    seen: Bool[Array, "m T"] | Leaf
    layer: Index | Leaf
    graph: Any
    last_only: bool = True

    @property
    def decoder(self) -> Decoder:
        """The whole decoder."""
        return nnx.merge(self.graph, self.state)

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n s"]:
        """The stream of contexts (by index) after block `layer`, with flags: ``[*n, T (d + 1)]``."""
        shape, flat = jnp.shape(contexts), jnp.ravel(contexts)
        decoder, tokens, seen = self.decoder, self.tokens[flat], self.seen[flat]
        positions = positions_of(seen)
        x = decoder.run(decoder.embed(tokens, positions), positions, seen, 0, self.layer + 1)
        return self.joined(x, seen).reshape(*shape, -1)

    def decode(self, h: Float[Array, "*n s"]) -> Float[Array, "*n V"]:
        """Logits from streams with flags: of the last position that is seen, ``[*n, V]``, or ``[*n, T V]`` of all."""
        lead = h.shape[:-1]
        x, seen = self.parted(h.reshape(-1, h.shape[-1]))
        decoder, positions = self.decoder, positions_of(seen)
        last = decoder.architecture.layers - 1
        if not self.last_only:
            x = decoder.run(x, positions, seen, self.layer + 1, last + 1)
            return decoder.logits(x).reshape(*lead, -1)
        at = last_seen(seen)

        def through(x: Array) -> Array:
            return decoder.finish(decoder.run(x, positions, seen, self.layer + 1, last), positions, seen, at)

        def nothing(x: Array) -> Array:
            return only_at(x, at)[:, 0]

        if isinstance(self.layer, int):
            x = through(x) if self.layer < last else nothing(x)
        else:
            x = lax.cond(self.layer < last, through, nothing, x)
        return decoder.logits(x).reshape(*lead, -1)

    def everywhere(self, v: Float[Array, " d"]) -> Float[Array, " s"]:
        """The steering vector of all positions: ``v`` at each of them."""
        return self.joined(
            jnp.broadcast_to(v, (self.tokens.shape[1], v.shape[0])), jnp.zeros(self.tokens.shape[1], bool)
        ).ravel()

    def at_end(self, v: Float[Array, " d"]) -> Float[Array, " s"]:
        """The steering vector of the last position only, for contexts that end there (padded on the left, or not)."""
        t = self.tokens.shape[1]
        rows = jnp.where(jnp.arange(t)[:, None] == t - 1, v, jnp.zeros_like(v))
        return self.joined(rows, jnp.zeros(t, bool)).ravel()

    def statically(self) -> "Split":
        """The same with the layer as a constant of the program, which reverse-mode derivatives need."""
        return replace(self, layer=int(self.layer))

    @staticmethod
    def joined(x: Float[Array, "*n d"], seen: Bool[Array, "*n"]) -> Float[Array, "*m s"]:
        """A stream and its flags as one axis."""
        whole = jnp.concatenate([x, seen[..., None].astype(x.dtype)], axis=-1)
        return whole.reshape(*whole.shape[:-2], -1)

    def parted(self, h: Float[Array, "n s"]) -> tuple[Float[Array, "n T d"], Bool[Array, "n T"]]:
        """The stream and the flags again."""
        t = self.tokens.shape[1]
        require(h.shape[-1] % t == 0, "h", f"the stream of {t} positions, with flags", f"width {h.shape[-1]}")
        whole = h.reshape(h.shape[0], t, -1)
        return whole[..., :-1], whole[..., -1] > 0.5


def last_seen(seen: Bool[Array, "n T"]) -> Int[Array, " n"]:
    """The last position of every context that is not padding."""
    t = seen.shape[1]
    return t - 1 - jnp.argmax(seen[:, ::-1], axis=1)


@nnx.jit
def all_logits(decoder: Decoder, tokens: Int[Array, "n T"], seen: Bool[Array, "n T"]) -> Float[Array, "n T V"]:
    """The logits at every position of unsteered contexts."""
    positions = positions_of(seen)
    x = decoder.run(decoder.embed(tokens, positions), positions, seen, 0, decoder.architecture.layers)
    return decoder.logits(x)


@nnx.jit
def all_states(decoder: Decoder, tokens: Int[Array, "n T"], seen: Bool[Array, "n T"]) -> Float[Array, "L n T d"]:
    """The residual stream after every block, in one pass."""
    positions = positions_of(seen)
    x = decoder.embed(tokens, positions)
    states = jnp.zeros((decoder.architecture.layers, *x.shape), x.dtype)

    def step(i: Any, carry: Any) -> Any:
        x, states = carry
        x = decoder.run(x, positions, seen, i, i + 1)
        return x, lax.dynamic_update_index_in_dim(states, x, i, 0)

    return lax.fori_loop(0, decoder.architecture.layers, step, (x, states))[1]
