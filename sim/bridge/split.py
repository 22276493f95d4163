"""A language model cut after one of its blocks, as the split of `ufm.steerable`: what is steered is its residual stream.

Layer l is the output of block l, counted from 0. The stream of all positions is one hidden state, and says itself which
positions are padding: position t has d numbers of the stream and a flag. So contexts may differ in length, a steering vector
adds 0 to the flags, and whatever is written against the split works: sweeps, curves, difference of means, derivatives.
Where later blocks are steered too (`Split.and_later`), a position has one more mark: the strength it is steered with.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sim.bridge import devices
from sim.bridge.config import Architecture
from sim.bridge.decoder import Decoder, Index, Keys, only_at, positions_of
from sim.bridge.values import as_numpy, numbers
from ufm._check import require
from ufm._pytree import Leaf
from ufm.precision import of_products, wide
from ufm.steerable import Change


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "tokens", "seen", "layer", "later"],
    meta_fields=["graph", "last_only", "budget", "together", "unrolled", "site"],
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
        later: what is added after each block beyond `layer`, for each unit of strength, ``[L, d]``; None for nothing.
        budget: numbers that a sweep holds at once, unless told otherwise.
        together: strengths decoded together, at most, where all logits of a text are held.
        unrolled: see `statically`.
        site: where updates act (`ufm.updates`): "state", the stream after block `layer`; or "down", the down-projection of
            that block's MLP, and then the cut is before this MLP (before the block, where MLP and attention are parallel).
    """

    state: Any
    tokens: Int[Array, "m T"] | Leaf
    seen: Bool[Array, "m T"] | Leaf
    layer: Index | Leaf
    graph: Any
    last_only: bool = True
    later: Float[Array, "L d"] | Leaf = None
    budget: int = devices.ON_CPU.budget
    together: int = devices.ON_CPU.together
    unrolled: bool = False
    site: str = "state"

    @property
    def decoder(self) -> Decoder:
        """The whole decoder."""
        return nnx.merge(self.graph, self.state)

    def __repr__(self) -> str:
        m, t = self.tokens.shape
        return f"Split(after block {self.layer}, {m} contexts of {t} tokens)"

    @property
    def described(self) -> str:
        """The type and the place, for messages."""
        return f"{self.decoder.dtype.name}, steered after block {self.layer}"

    @property
    def n_contexts(self) -> int:
        """m, the number of contexts."""
        return self.tokens.shape[0]

    @property
    def held(self) -> int:
        """Numbers held while one hidden state is decoded: its logits, and the widest part of a block."""
        a, t = self.decoder.architecture, self.tokens.shape[1]
        return (1 if self.last_only else t) * a.vocabulary + held_by_blocks(a, t)

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n s"]:
        """The stream of contexts (by index) at the cut, with marks: ``[*n, T (d + 1)]``, in float32 at least."""
        shape, flat = jnp.shape(contexts), jnp.ravel(contexts)
        decoder, tokens, seen = self.decoder, self.tokens[flat], self.seen[flat]
        positions = positions_of(seen)
        x = decoder.run(decoder.embed(tokens, positions), positions, seen, 0, self.layer + (self.site == "state"))
        if self.site == "down" and not decoder.architecture.parallel:
            keys, turns = Keys(positions, seen), decoder.rotations(positions)
            x = decoder.attend(decoder.block(self.layer), self.layer, x, positions, turns, keys)
        return self.joined(x, seen).reshape(*shape, -1)

    def embed_all(self, contexts: Int[Array, " n"]) -> Float[Array, "L n s"]:
        """States of contexts after every block, in one pass: what `ufm.sweep_states` takes with the split `after` each."""
        states, seen = all_states(self.decoder, self.tokens[contexts], self.seen[contexts]), self.seen[contexts]
        return self.joined(states, jnp.broadcast_to(seen, states.shape[:-1]))

    def decode(self, h: Float[Array, "*n s"]) -> Float[Array, "*n V"]:
        """Logits from streams with marks: of the last position that is seen, ``[*n, V]``, or ``[*n, T V]`` of all."""
        logits = self.decoder.logits(self.before_norm(h))
        return logits if self.last_only else logits.reshape(*h.shape[:-1], -1)

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """The one site of this cut (`LanguageModel.at` takes another)."""
        a = self.decoder.architecture
        return {self.site: (a.width if self.site == "state" else a.hidden, a.width)}

    def decode_through(
        self, h: Float[Array, "*n s"], site: str, change: Change, m: Float[Array, "*n"]
    ) -> Float[Array, "*n V"]:
        """Logits with the output of the site changed, at every position.

        Raises:
            ValueError: another site than that of this cut.
        """
        require(site == self.site, "site", f"{self.site}, that of this cut", repr(site))
        logits = self.decoder.logits(self.before_norm(h, change, m))
        return logits if self.last_only else logits.reshape(*h.shape[:-1], -1)

    def before_norm(
        self, h: Float[Array, "*n s"], change: Change | None = None, m: Float[Array, "*n"] | None = None
    ) -> Float[Array, "..."]:
        """What the last norm is given: the stream after all blocks, of the last position, or of all, ``[*n, T, d]``."""
        lead = h.shape[:-1]
        x, marks = self.parted(h.reshape(-1, h.shape[-1]))
        seen = is_set(marks[..., 0])
        decoder, positions = self.decoder, positions_of(seen)
        x = self._past_site(x, positions, seen, change, m)
        last = decoder.architecture.layers - 1
        more = None if self.later is None else (lambda x, i: x + (marks[..., 1:] * self.later[i]).astype(x.dtype))
        run = partial(decoder.run, positions=positions, seen=seen, first=self.layer + 1, each=more, unrolled=self.unrolled)
        if not self.last_only:
            x = run(x, last=last + 1)
            return x.reshape(*lead, *x.shape[1:])
        at = last_seen(seen)

        def through(x: Array) -> Array:
            x = decoder.finish(run(x, last=last), positions, seen, at)
            return x if self.later is None else x + (only_at(marks[..., 1:], at)[:, 0] * self.later[last]).astype(x.dtype)

        def nothing(x: Array) -> Array:
            return only_at(x, at)[:, 0]

        if isinstance(self.layer, int):
            x = through(x) if self.layer < last else nothing(x)
        else:
            x = lax.cond(self.layer < last, through, nothing, x)
        return x.reshape(*lead, -1)

    def _past_site(
        self, x: Array, positions: Array, seen: Array, change: Change | None, m: Array | None
    ) -> Float[Array, "n T d"]:
        """The stream after block `layer`, from that at the cut."""
        changed = None
        if change is not None and m is not None:
            strengths = m.reshape(-1, 1, 1)

            def changed(given: Array, out: Array) -> Array:
                return change(given, out, strengths)

        if self.site == "down":
            decoder, block = self.decoder, self.decoder.block(self.layer)
            if not decoder.architecture.parallel:
                return decoder.transform(block, x, changed)
            turns, keys = decoder.rotations(positions), Keys(positions, seen)
            return decoder.through(block, self.layer, x, positions, turns, keys, change=changed)
        return x if changed is None else changed(x, x)

    def everywhere(self, v: Any) -> Float[Array, " s"]:
        """The steering vector of all positions: ``v`` at each of them.

        Args:
            v: ``[d]``: a list, or an array or tensor of any library.

        Raises:
            ValueError: a v of another width; outside transformations, one that is not finite.
        """
        v, t = self._checked(v), self.tokens.shape[1]
        return self._marked(jnp.broadcast_to(v, (t, v.shape[-1])), jnp.ones(t))

    def at_end(self, v: Any) -> Float[Array, " s"]:
        """The steering vector of the last position only, for contexts that end there (padded on the left, or not).

        Raises:
            ValueError: as `everywhere`.
        """
        v = self._checked(v)
        end = jnp.arange(self.tokens.shape[1]) == self.tokens.shape[1] - 1
        return self._marked(jnp.where(end[:, None], v, jnp.zeros_like(v)), end)

    def _checked(self, v: Any) -> Float[Array, " d"]:
        width, v = self.decoder.architecture.width, _finite("v", v)
        require(v.shape == (width,), "v", f"shape ({width},), the width of the stream", v.shape)
        return v

    def _marked(self, rows: Float[Array, "T d"], strength: Array) -> Float[Array, " s"]:
        """Rows of a steering vector as one axis, with marks: nothing for the flag, and the unit of strength."""
        marks = [jnp.zeros_like(strength)] + ([] if self.later is None else [strength])
        return jnp.concatenate([rows, jnp.stack(marks, axis=-1).astype(rows.dtype)], axis=-1).ravel()

    def after(self, layer: Index) -> "Split":
        """A split of these contexts with the cut elsewhere; `layer` is not checked."""
        return replace(self, layer=layer if isinstance(layer, int) else jnp.asarray(layer))

    def and_later(self, rows: Any) -> "Split":
        """This split with ``alpha rows[l]`` added after each block l beyond the cut too, wherever alpha v is.

        Steering vectors are then those that the new split makes: its `everywhere` and `at_end`.

        Args:
            rows: ``[L, d]``, as `everywhere` takes them; those up to the cut are not used.

        Raises:
            ValueError: rows of another shape; outside transformations, ones that are not finite.
        """
        a = self.decoder.architecture
        rows = _finite("rows", rows)
        require(rows.shape == (a.layers, a.width), "rows", f"shape ({a.layers}, {a.width})", rows.shape)
        return replace(self, later=rows)

    def statically(self, *, unrolled: bool = False) -> "Split":
        """This split with the layer as a constant of the program, which reverse-mode derivatives need.

        Taylor mode (`jax.experimental.jet`) also needs the blocks `unrolled`: it knows no loops.
        """
        return replace(self, layer=int(self.layer), unrolled=unrolled)

    def joined(self, x: Float[Array, "*n d"], seen: Bool[Array, "*n"]) -> Float[Array, "*m s"]:
        """A stream and its marks as one axis, in float32 at least; nothing is steered yet."""
        x = wide(x)
        marks = [seen.astype(x.dtype)] + ([] if self.later is None else [jnp.zeros(seen.shape, x.dtype)])
        whole = jnp.concatenate([x, jnp.stack(marks, axis=-1)], axis=-1)
        return whole.reshape(*whole.shape[:-2], -1)

    def parted(self, h: Float[Array, "n s"]) -> tuple[Float[Array, "n T d"], Float[Array, "n T k"]]:
        """The stream and the marks again.

        Raises:
            ValueError: a stream of another length.
        """
        t, width = self.tokens.shape[1], self.decoder.architecture.width
        per = width + (1 if self.later is None else 2)
        require(h.shape[-1] == t * per, "h", f"the stream of {t} positions with marks, {t * per} numbers", h.shape[-1])
        whole = h.reshape(h.shape[0], t, per)
        return whole[..., :width], whole[..., width:]


def held_by_blocks(a: Architecture, t: int) -> int:
    """Numbers held while blocks run on one context of t tokens: the stream, and the widest part of a block."""
    attention = (a.heads + 2 * a.kv_heads) * a.head_dim + 2 * a.heads * t
    return t * (3 * a.width + max(3 * a.hidden, attention))


def _finite(name: str, value: Any) -> Any:
    """An array of JAX, as it is if it is being traced; of what other libraries have, if it is finite."""
    if isinstance(value, jax.core.Tracer):
        return jnp.asarray(value)
    numbers(name, value)
    return value if isinstance(value, jax.Array) else jnp.asarray(as_numpy(name, value))


def is_set(flag: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether a flag is 1 rather than 0."""
    return lax.gt(flag, jnp.full_like(flag, 0.5))


def last_seen(seen: Bool[Array, "n T"]) -> Int[Array, " n"]:
    """The last position of every context that is not padding."""
    t = seen.shape[1]
    return t - 1 - lax.argmax(lax.rev(lax.convert_element_type(seen, jnp.int32), (1,)), 1, jnp.int32)


@nnx.jit
def all_logits(decoder: Decoder, tokens: Int[Array, "n T"], seen: Bool[Array, "n T"]) -> Float[Array, "n T V"]:
    """The logits at every position of unsteered contexts."""
    return decoder(tokens, seen)


@nnx.jit
def all_states(decoder: Decoder, tokens: Int[Array, "n T"], seen: Bool[Array, "n T"]) -> Float[Array, "L n T d"]:
    """The residual stream after every block, in one pass."""
    return _after_every_block(decoder, tokens, seen, lambda x: x)


@nnx.jit
def all_means(decoder: Decoder, tokens: Int[Array, "n T"], seen: Bool[Array, "n T"]) -> Float[Array, "L n d"]:
    """The states of every block as their mean over the positions that are seen."""
    shares = seen / jnp.maximum(seen.sum(axis=1, keepdims=True), 1)

    def mean(x: Array) -> Array:
        x = wide(x)
        return jnp.einsum("ntd,nt->nd", x, shares.astype(x.dtype), precision=of_products(x.dtype))

    return _after_every_block(decoder, tokens, seen, mean)


def _after_every_block(decoder: Decoder, tokens: Array, seen: Array, keep: Callable[[Array], Array]) -> Array:
    """What is kept of the residual stream after every block, with a leading layer axis."""
    positions = positions_of(seen)
    x = decoder.embed(tokens, positions)
    kept = jax.eval_shape(keep, x)
    every = jnp.zeros((decoder.architecture.layers, *kept.shape), kept.dtype)

    def step(i: Any, carry: Any) -> Any:
        x, every = carry
        x = decoder.run(x, positions, seen, i, i + 1)
        return x, lax.dynamic_update_index_in_dim(every, keep(x), i, 0)

    return lax.fori_loop(0, decoder.architecture.layers, step, (x, every))[1]


@jax.jit
def end_states(cut: Split) -> Float[Array, "n d"]:
    """The residual stream at the cut, at the last position of all contexts, which are padded on the left."""
    return cut.parted(cut.embed(jnp.arange(cut.n_contexts)))[0][:, -1]


@jax.jit
def last_log_p(cut: Split) -> Float[Array, "n V"]:
    """Log-probabilities of the token after every context of a split."""
    return jax.nn.log_softmax(cut.decode(cut.embed(jnp.arange(cut.tokens.shape[0]))))
