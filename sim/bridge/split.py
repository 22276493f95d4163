"""A language model split after one of its blocks (`ufm.steerable`): what steers acts on its residual stream, or in an MLP.

Layer l is the output of block l, counted from 0. Contexts may differ in length: they are padded on the left, and the state
says which positions are padding. A steering moves the split to where it first acts, in depth and in position: what is before
the first position that it touches is computed once, and kept as keys and values.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from sim.bridge import devices
from sim.bridge.config import Config
from sim.bridge.decoder import MOST_QUERIES, AttentionContext, Decoder, Index, PrefixKV, SiteHook, select_position
from ufm._check import require
from ufm._compiled import compiled
from ufm._pytree import Leaf, pytree, static
from ufm.precision import wide
from ufm.steerable import Steerable
from ufm.steering import (
    RESIDUAL,
    State,
    Steering,
    Tokens,
    at_block,
    last_of,
    require_contexts,
    require_sites,
    stacks,
    without_budget,
)

MLP_DOWN = "mlp_down"
"""The site of a block at the down-projection of its MLP."""


@pytree
@dataclass(frozen=True)
class Split(Steerable):
    """A decoder split after block `layer`, and the contexts it is asked about. It shares the decoder's parameters.

    Attributes:
        parameters: of the decoder.
        tokens: the contexts, padded on the left to one length, ``[m, T]``.
        mask: which of them are not padding, ``[m, T]``.
        layer: after which block, 0 to L - 1. An array: programs are the same for all layers. None until a steering tells.
        graph: the structure of the decoder.
        last_only: whether `decode` gives the logits of the last position, or of all.
        budget: numbers that a sweep holds at once, unless told otherwise.
        strengths_per_batch: strengths decoded together, at most, where all logits of a text are held.
        unrolled: see `statically`.
        site: where in the block: "residual", after it; or "mlp_down", before its MLP (before the block, where MLP and
            attention are parallel).
        prefix_length: the first position that a steering touches; what is before it is kept as keys and values.
        batch_sharding: how contexts or strengths are spread over devices (`ufm.steerable.Steerable`).
        rematerialised: whether reverse-mode derivatives compute blocks again and do not keep what is inside them.
    """

    parameters: Any
    tokens: Int[Array, "m T"] | Leaf
    mask: Bool[Array, "m T"] | Leaf
    layer: Index | Leaf
    graph: Any = static()
    last_only: bool = static(default=True)
    budget: int = static(default=devices.ON_CPU.budget)
    strengths_per_batch: int = static(default=devices.ON_CPU.strengths_per_batch)
    unrolled: bool = static(default=False)
    site: str = static(default=RESIDUAL)
    prefix_length: int = static(default=0)
    batch_sharding: NamedSharding | None = static(default=None)
    rematerialised: bool = static(default=False)

    @property
    def decoder(self) -> Decoder:
        """The whole decoder."""
        return nnx.merge(self.graph, self.parameters)

    def __repr__(self) -> str:
        m, t = self.tokens.shape
        return f"Split({self._where}, {m} contexts of {t} tokens)"

    @property
    def _where(self) -> str:
        return "at no layer yet" if self.layer is None else f"after block {self.layer}"

    @property
    def described(self) -> str:
        """The type and the place, for messages."""
        return f"{self.decoder.dtype.name}, steered {self._where.removeprefix('at no layer yet')}".rstrip(", ")

    @property
    def n_contexts(self) -> int:
        """m, the number of contexts."""
        return self.tokens.shape[0]

    @property
    def activation_size(self) -> int:
        """Numbers held while one state is decoded: its logits, and the widest part of a block."""
        a, t = self.decoder.config, self.tokens.shape[1]
        return (1 if self.last_only else t) * a.vocab_size + block_activation_size(a, t - self.prefix_length, t)

    @property
    def prefix_size(self) -> int:
        """Numbers held for one context: the widest part of a block, and keys and values of what is not steered."""
        a, t = self.decoder.config, self.tokens.shape[1]
        return block_activation_size(a, t, t) + 2 * a.num_layers * a.num_kv_heads * a.head_dim * self.prefix_length

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """How many numbers each site takes and gives."""
        return sites_of(self.decoder.config)

    # --- to where a steering acts --------------------------------------------------------------------------------------

    def at(self, layer: Index) -> "Split":
        """These contexts, split after another block; `layer` is not checked."""
        return replace(self, layer=layer if isinstance(layer, int) else jnp.asarray(layer))

    def statically(self, *, unrolled: bool = False) -> "Split":
        """This split with the layer as a constant of the program, which reverse-mode derivatives need.

        Taylor mode (`jax.experimental.jet`) also needs the blocks `unrolled`: it knows no loops.
        """
        return replace(self, layer=int(self.layer), unrolled=unrolled)

    def resolve(self, steering: Steering) -> tuple["Split", Steering]:
        """These contexts, split where a steering first acts, and the steering as seen from there.

        Raises:
            ValueError: a layer, a site or tokens that the model does not have; parts without a layer, if the split has
                none; an intervention of other widths, or with numbers that are not finite; a budget, where every position
                is predicted.
        """
        self._require_fits(steering)
        first = self._first_layer(steering)
        resolved = steering.with_layers([None if _is_same(part.layer, first) else part.layer for part in steering.parts])
        layer = first if isinstance(self.layer, int) else jnp.asarray(first)
        site = MLP_DOWN if resolved.parts_at_split(MLP_DOWN) else RESIDUAL
        return replace(self, layer=layer, site=site, prefix_length=self._first_touched(steering)), resolved

    def _first_layer(self, steering: Steering) -> Index:
        """The first block that a steering acts at: the only one, or one that is known before compilation."""
        layers = [part.layer for part in steering.parts if part.layer is not None]
        traced = any(isinstance(layer, jax.core.Tracer) for layer in (self.layer, *layers))
        if len(layers) < len(steering.parts):  # some act where the model is split
            require(self.layer is not None, "steering", "a layer, as in Steering({12: Add(v)})", repr(steering))
            if not traced:
                behind = all(layer >= int(self.layer) for layer in layers)
                require(behind, "layer", f"blocks from {self.layer} on, where the model is split", layers)
            return self.layer
        require(
            not traced or len(layers) == 1, "steering", "layers that are known before compilation", "several traced ones"
        )
        return layers[0] if traced else min(layers)

    def _first_touched(self, steering: Steering) -> int:
        """The first position that is touched in any context, as far as that is known before compilation.

        Raises:
            ValueError: tokens of which a context has none.
        """
        columns = [part.tokens.first_column(self.mask) for part in steering.parts] if self.last_only else [0]
        known = [column for column in columns if column is not None]
        # Where one is not known here, the split was resolved before compilation.
        return min(known) if 0 in known or len(known) == len(columns) else self.prefix_length

    def check(self, steering: Steering) -> None:
        """Refuse a steering that cannot act on the states of this split.

        Raises:
            ValueError: one that acts before it, in depth or in position; whatever `resolve` refuses.
        """
        self._require_fits(steering)
        for part in steering.parts:
            early = part.layer is None and part.site == MLP_DOWN and self.site == RESIDUAL
            require(not early, "site", f"{RESIDUAL}, or states from before the MLP", part.site)
            behind = not isinstance(part.layer, int) or isinstance(self.layer, jax.core.Tracer) or part.layer > self.layer
            require(bool(behind), "layer", f"blocks after {self.layer}, or none for where the model is split", part.layer)
        if self.prefix_length > 0:
            first = self._first_touched(steering)
            expected = f"positions from {self.prefix_length} on, where these states begin"
            require(first >= self.prefix_length, "tokens", expected, first)

    def _require_fits(self, steering: Steering) -> None:
        """Refuse a steering that is made for another model, or with a budget where what one prediction may cost depends on
        what was steered for those before it."""
        require_sites(steering, self.sites, layers=self.decoder.config.num_layers)
        require_contexts(steering, self.tokens.shape[0])
        if not self.last_only:
            without_budget(steering, "predictions at every position of a text")

    # --- to and from states ----------------------------------------------------------------------------------------------

    @compiled
    def embed(self, contexts: Int[Array, "*n"]) -> State:
        """The state of contexts (by index), its stream in float32 at least.

        Raises:
            ValueError: a split without a layer.
        """
        require(self.layer is not None, "layer", "a block to split after", "none")
        shape, flat = jnp.shape(contexts), jnp.ravel(contexts)
        decoder, tokens, mask = self.decoder, self.tokens[flat], self.mask[flat]
        attention_context = decoder.attention_context(mask)
        first = self.layer + (self.site == RESIDUAL)
        x = decoder.run_blocks(decoder.embed(tokens, attention_context.positions), attention_context, 0, first)
        start, later = self.prefix_length, x
        if self.site == MLP_DOWN and not decoder.config.parallel_residual:
            later = decoder.attention(decoder.block(self.layer), self.layer, x, attention_context)
        keys, values = (None, None) if start == 0 else self._kept(x[:, :start], attention_context, first)
        state = State(wide(later[:, start:]), mask, flat, keys, values)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), state)

    def _kept(
        self, x: Float[Array, "n S d"], attention_context: AttentionContext, first: Index
    ) -> tuple[Float[Array, "n L k S h"], Float[Array, "n L k S h"]]:
        """Keys and values of the first positions at block `first` and those after it, where nothing is steered."""
        decoder = self.decoder
        a, (n, size, _) = decoder.config, x.shape
        prefix = AttentionContext(
            attention_context.positions[:, :size],
            jax.tree.map(lambda rope: rope[:, :, :size], attention_context.rope),
            jax.tree.map(lambda slots: slots[:, :size], attention_context.slots),
        )

        def step(i: Index, carry: Any) -> Any:
            x, keys, values = carry

            def kept(key: Array, value: Array) -> tuple[Array, Array]:
                nonlocal keys, values
                keys, values = (
                    lax.dynamic_update_index_in_dim(every, new.astype(every.dtype), i, 1)
                    for every, new in ((keys, key), (values, value))
                )
                return key, value

            x = decoder.apply_block(decoder.block(i), i, x, prefix, update_kv=kept)
            return x, keys, values

        empty = jnp.zeros((n, a.num_layers, a.num_kv_heads, size, a.head_dim), decoder.dtype)
        if not self.unrolled:
            return lax.fori_loop(first, a.num_layers, step, (x, empty, empty))[1:]
        carry = (x, empty, empty)
        for i in range(first, a.num_layers):
            carry = step(i, carry)
        return carry[1:]

    @compiled
    def embed_all(self, contexts: Int[Array, " n"]) -> State:
        """States of contexts after every block, in one pass: of the splits `at` each layer, which is the leading axis."""
        states = wide(states_after_blocks(self.decoder, self.tokens[contexts], self.mask[contexts]))
        every = states.shape[:2]
        mask = jnp.broadcast_to(self.mask[contexts], (*every, self.mask.shape[1]))
        return State(states, mask, jnp.broadcast_to(contexts, every))

    @compiled
    def decode(self, state: State) -> Float[Array, "*n V"]:
        """Logits from states: of the last position, ``[*n, V]``, or of all, ``[*n, T, V]``."""
        return self.decoder.logits(self.before_norm(state))

    @compiled
    def steered(self, state: State, steering: Steering, alpha: Any) -> Float[Array, "*n V"]:
        """Logits from states under a steering; shapes are those of `decode`."""
        return self.decoder.logits(self.before_norm(state, steering, alpha))

    def before_norm(self, state: State, steering: Steering | None = None, alpha: Any = 0.0) -> Float[Array, "..."]:
        """The input of the last norm: the stream after all blocks, of the last position ``[*n, d]``, or of all.

        Args:
            state: as `embed` gives it.
            steering: as `resolve` gives it, if anything steers.
            alpha: its strength, one for all, or one for each part, ``[k]``.
        """
        lead = state.mask.shape[:-1]
        state = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), state)
        decoder, x = self.decoder, state.stream
        attention_context = self._attention_context(state)
        hook = None if steering is None else self._hook(steering, alpha, state, None)
        x = self._finish_block(x, attention_context, hook)
        last = decoder.config.num_layers - 1
        blocks = partial(
            decoder.run_blocks,
            attention_context=attention_context,
            first=self.layer + 1,
            hook=hook,
            unrolled=self.unrolled,
            rematerialised=self.rematerialised,
        )
        if not self.last_only:
            x = blocks(x, last=last + 1)
            return x.reshape(*lead, *x.shape[1:])
        query_position = last_of(state.mask) - (state.mask.shape[1] - x.shape[1])
        end_hook = None if steering is None else self._hook(steering, alpha, state, query_position)

        def through(x: Array) -> Array:
            return decoder.last_block(blocks(x, last=last), attention_context, query_position, hook=end_hook)

        def nothing(x: Array) -> Array:
            return select_position(x, query_position)[:, 0]

        if isinstance(self.layer, int):
            x = through(x) if self.layer < last else nothing(x)
        else:
            x = lax.cond(self.layer < last, through, nothing, x)
        return x.reshape(*lead, -1)

    def _attention_context(self, state: State) -> AttentionContext:
        """Where the tokens of a state are, and the keys before them."""
        whole = self.decoder.attention_context(state.mask)
        start = state.mask.shape[1] - state.stream.shape[1]
        if start == 0:
            return whole
        before, slots = (
            jax.tree.map(lambda slots, part=part: slots[:, part], whole.slots) for part in (slice(start), slice(start, None))
        )
        rope = jax.tree.map(lambda rope: rope[:, :, start:], whole.rope)
        return AttentionContext(slots.positions, rope, slots, PrefixKV(before, state.keys, state.values))

    def _hook(self, steering: Steering, alpha: Any, state: State, query_position: Int[Array, " n"] | None) -> SiteHook:
        """A hook that steers at the sites of the blocks behind the split.

        Args:
            steering: as `resolve` gives it.
            alpha: its strength.
            state: whose positions are steered.
            query_position: the one position that is computed; all if left out.
        """
        later, strengths, start = stacks(steering), steering.strengths(alpha), state.mask.shape[1] - state.stream.shape[1]
        selections = [part.tokens.chosen(state.mask, state.context) for part in steering.parts] if start else []
        # What is known in a compiled program only: no token before the first of this state can be steered any more.
        early = [jnp.any(every[:, :start]) for every in selections if every is not None]

        def chosen(tokens: Tokens) -> Bool[Array, "n t"] | None:
            every = tokens.chosen(state.mask, state.context)
            if every is None:
                return None
            suffix = every[:, start:]
            return suffix if query_position is None else jnp.take_along_axis(suffix, query_position[:, None], axis=1)

        def hook(site: str, i: Index | None, x: Array, y: Array) -> Array:
            if i is None:
                for k, part in steering.parts_at_split(site):
                    y = part.apply(x, y, strengths[..., k], chosen(part.tokens))
                for stack in later:
                    # What is known in a compiled program only: no block before the split can be steered any more.
                    traced = isinstance(stack.layers, jax.core.Tracer)
                    y = jnp.where(jnp.all(stack.layers > self.layer), y, jnp.nan) if traced else y
                return jnp.where(jnp.any(jnp.stack(early)), jnp.nan, y) if early else y
            return at_block(later, site, i, x, y, strengths, chosen)

        return hook

    def _finish_block(self, x: Array, attention_context: AttentionContext, hook: SiteHook | None) -> Float[Array, "n t d"]:
        """The stream after block `layer`, steered where the model is split, from that at the split."""
        if self.site == RESIDUAL:
            return x if hook is None else hook(RESIDUAL, None, x, x)
        decoder, block = self.decoder, self.decoder.block(self.layer)

        def split_hook(site: str, i: Index, x: Array, out: Array) -> Array:
            del i
            return out if hook is None else hook(site, None, x, out)

        if decoder.config.parallel_residual:
            return decoder.apply_block(block, self.layer, x, attention_context, hook=split_hook)
        return decoder.mlp(block, self.layer, x, hook=split_hook)


def sites_of(a: Config) -> dict[str, tuple[int, int]]:
    """The sites of a decoder's blocks: how many numbers each takes and gives."""
    return {RESIDUAL: (a.d_model, a.d_model), MLP_DOWN: (a.d_mlp, a.d_model)}


def _is_same(layer: Index | None, other: Index) -> bool:
    """Whether a part's layer is another, or left open, as far as that is known before compilation."""
    if layer is None or layer is other:
        return True
    return not isinstance(layer, jax.core.Tracer) and not isinstance(other, jax.core.Tracer) and int(layer) == int(other)


def block_activation_size(a: Config, t: int, whole: int) -> int:
    """Numbers held while blocks run on t tokens of a context of `whole`: the stream, and the widest part of a block."""
    attention = t * (a.num_heads + 2 * a.num_kv_heads) * a.head_dim + 2 * min(t, MOST_QUERIES) * a.num_heads * whole
    return 3 * t * a.d_model + max(3 * t * a.d_mlp, attention)


@jax.jit
def all_logits(decoder: Decoder, tokens: Int[Array, "n T"], mask: Bool[Array, "n T"]) -> Float[Array, "n T V"]:
    """The logits at every position of unsteered contexts."""
    return decoder(tokens, mask)


def states_after_blocks(decoder: Decoder, tokens: Int[Array, "n T"], mask: Bool[Array, "n T"]) -> Float[Array, "L n T d"]:
    """The residual stream after every block, in one pass."""
    attention_context = decoder.attention_context(mask)
    x = decoder.embed(tokens, attention_context.positions)

    def step(i: Any, carry: Any) -> Any:
        x, every = carry
        x = decoder.run_blocks(x, attention_context, i, i + 1)
        return x, lax.dynamic_update_index_in_dim(every, x, i, 0)

    every = jnp.zeros((decoder.config.num_layers, *x.shape), x.dtype)
    return lax.fori_loop(0, decoder.config.num_layers, step, (x, every))[1]


all_states = jax.jit(states_after_blocks)
"""`states_after_blocks`, compiled once for each shape."""


@jax.jit
def end_states(split: Split) -> Float[Array, "n d"]:
    """The residual stream at the cut, at the last position of all contexts, which are padded on the left."""
    return split.embed(jnp.arange(split.n_contexts)).stream[:, -1]


def last_log_p(split: Split) -> Float[Array, "n V"]:
    """Log-probabilities of the token after every context of a split.

    Raises:
        ValueError: outside transformations, log-probabilities that are not finite.
    """
    values = _compiled_last_log_p(split)
    if not isinstance(values, jax.core.Tracer):
        finite = bool(jnp.isfinite(values).all())
        require(finite, "logits", "finite numbers", f"others, in {split.decoder.dtype.name}")
    return values


@jax.jit
def _compiled_last_log_p(split: Split) -> Float[Array, "n V"]:
    return jax.nn.log_softmax(split.decode(split.embed(jnp.arange(split.n_contexts))))
