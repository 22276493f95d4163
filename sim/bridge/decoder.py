"""The decoder of all families, in Flax NNX: embedding, blocks, last norm, unembedding.

    x <- x + attention(norm(x)),   x <- x + mlp(norm(x)),   ...,   logits = U norm(x)

Some families have the norms after attention and MLP, or on both sides; in some the MLP reads what attention reads.
The parameters of all blocks are stacked along a layer axis, and blocks run in one loop over it: what is compiled does not
grow with depth, and the first l blocks and the others are the same program with other bounds. The residual stream is what
blocks hand on; a model is steered by adding to it between two of them (`Decoder.run_blocks`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.config import Config
from sim.bridge.offload import is_on_host, to_device
from ufm.normalised import norm
from ufm.precision import of_products, wide
from ufm.steering import positions_of

Index = Int[Array, ""] | int

MOST_QUERIES = 1024
"""Queries that attend at a time: in a long context attention takes memory in proportion to its length, not its square."""

MASK_VALUE = -1e30
"""The attention logit of a masked position: finite, so that a position that attends to nothing gives no NaN."""


SiteHook = Callable[[str, Index | None, Array, Array], Array]
"""A function that acts at a site of a block: from the site's name, the number of the block (None for the one where a model
is split), the site's input and its output to another output."""


class KeySlots(NamedTuple):
    """Slots of keys and values: the position of each, and whether it can be attended to."""

    positions: Int[Array, "n S"]
    valid: Bool[Array, "n S"]

    def mask(self, of: Int[Array, "n t"], window: Index | None) -> Bool[Array, "n t S"]:
        """The attention mask of query positions: their own slots and earlier ones, up to `window` of them."""
        back = of[:, :, None] - self.positions[:, None, :]
        near = back >= 0 if window is None else (back >= 0) & (back < window)
        return near & self.valid[:, None, :]


class PrefixKV(NamedTuple):
    """Keys and values of every block for positions before those of a stream.

    Attributes:
        slots: where they are.
        key, value: ``[n, L, k, S, h]``.
    """

    slots: KeySlots
    key: Float[Array, "n L k S h"]
    value: Float[Array, "n L k S h"]


class AttentionContext(NamedTuple):
    """Where the tokens of a stream are, and what they can attend to.

    Attributes:
        positions: of its tokens, counted from 0 at the first that is not padding, ``[n, t]``.
        rope: cosines and sines of these positions (`Decoder.rope`).
        slots: of the keys and values that the stream itself gives, or of a cache.
        prefix: what is before them, if anything.
    """

    positions: Int[Array, "n t"]
    rope: Any
    slots: KeySlots
    prefix: PrefixKV | None = None


class Blocks(nnx.Module):
    """The parameters of all blocks, each with a leading layer axis; or those of one block, without."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        for name, value in parameters.items():
            setattr(self, name, nnx.Param(value))


class Decoder(nnx.Module):
    """A decoder-only transformer of any of the families.

    Attributes:
        config: what it is made of.
        dtype: of the computation; norms, softmax and logits are in float32 at least.
        fast: whether products of float32 may be as short as the device likes (`ufm.precision`).
        offloaded: whether the matrices of the blocks are in the host's memory, from where each block comes when it runs.
        embedding, positions, unembedding, norm, norm_bias: parameters; those that the architecture has.
        blocks: those of all blocks.
    """

    embedding: nnx.Param
    positions: nnx.Param
    unembedding: nnx.Param
    norm: nnx.Param
    norm_bias: nnx.Param

    def __init__(
        self, config: Config, parameters: dict[str, Any], *, dtype: DTypeLike = jnp.float32, fast: bool = False
    ) -> None:
        """A decoder is made from parameters by path, as `shapes` lists them."""
        self.config, self.dtype, self.fast = config, jnp.dtype(dtype), fast
        self.offloaded = any(is_on_host(value) for value in parameters.values())
        for name, value in parameters.items():
            if "." not in name:
                setattr(self, name, nnx.Param(value))
        self.blocks = Blocks({name.removeprefix("blocks."): value for name, value in parameters.items() if "." in name})

    def __call__(self, tokens: Int[Array, "n T"], mask: Bool[Array, "n T"]) -> Float[Array, "n T V"]:
        """The logits at every position of unsteered contexts."""
        attention_context = self.attention_context(mask)
        x = self.embed(tokens, attention_context.positions)
        return self.logits(self.run_blocks(x, attention_context, 0, self.config.num_layers))

    # --- the parts ---------------------------------------------------------------------------------------------------

    def embed(self, tokens: Int[Array, "n T"], positions: Int[Array, "n T"]) -> Float[Array, "n T d"]:
        """The residual stream before the first block."""
        a = self.config
        x = self.embedding[...][tokens].astype(self.dtype)
        if a.embedding_scale != 1:
            # Gemma was trained with a factor that is rounded to the type of the embedding.
            x = x * jnp.asarray(a.embedding_scale, self.dtype)
        return x + self.positions[...][positions].astype(self.dtype) if a.learned_positions else x

    def run_blocks(
        self,
        x: Float[Array, "n t d"],
        attention_context: AttentionContext,
        first: Index,
        last: Index,
        *,
        hook: SiteHook | None = None,
        unrolled: bool = False,
        rematerialised: bool = False,
    ) -> Float[Array, "n t d"]:
        """Blocks `first` to ``last - 1`` on the residual stream.

        Args:
            x: before them.
            attention_context: where its tokens are, and what they can attend to.
            first, last: which blocks. Python numbers give a program that reverse-mode derivatives go through; arrays one
                that serves all layers.
            hook: what is done at the sites of a block.
            unrolled: no loop in the program, for transformations that know none, such as Taylor mode; contexts of more than
                `MOST_QUERIES` tokens have one in any case.
            rematerialised: reverse-mode derivatives keep the stream before every block and compute the rest again, which
                costs a third more time and saves most memory. Where blocks are `offloaded` they do so in any case: they
                would keep all blocks on the device.
        """

        def step(i: Index, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
            return self.apply_block(self.block(i), i, x, attention_context, hook=hook)

        if not unrolled:
            again = rematerialised or self.offloaded
            return lax.fori_loop(first, last, jax.checkpoint(step, prevent_cse=False) if again else step, x)
        for i in range(first, last):
            x = step(i, x)
        return x

    def last_block(
        self,
        x: Float[Array, "n t d"],
        attention_context: AttentionContext,
        query_position: Int[Array, " n"],
        *,
        hook: SiteHook | None = None,
    ) -> Float[Array, "n d"]:
        """The last block, as far as one position of every sequence needs it: all keys, one query, one MLP.

        Args:
            x: the stream before it.
            attention_context: where its tokens are.
            query_position: which of its t positions is asked for.
            hook: what is done at the sites of the block, of this position alone.
        """
        i = self.config.num_layers - 1
        block = self.block(i)

        def only(values: Array) -> Array:
            return select_position(values, query_position)

        h = self.pre_norm(x, block, "attention_norm")
        key, value = self.keys_values(block, i, h, attention_context.rope)
        x, h = only(x), only(h)
        rope = jax.tree.map(lambda t: jax.vmap(only)(t), attention_context.rope)
        alone = attention_context._replace(positions=only(attention_context.positions), rope=rope)
        attended = x + self.attention_output(block, i, h, key, value, alone)
        return self.mlp(block, i, attended, hook=hook, pre_attention_stream=x)[:, 0]

    def attention_context(self, mask: Bool[Array, "n T"]) -> AttentionContext:
        """Where the tokens of whole contexts are."""
        positions = positions_of(mask)
        return AttentionContext(positions, self.rope(positions), KeySlots(positions, mask))

    def logits(self, x: Float[Array, "*n d"]) -> Float[Array, "*n V"]:
        """Last norm and unembedding."""
        a = self.config
        x = self.normalise(x, self, "norm")
        matrix = (self.embedding if a.tied else self.unembedding)[...].astype(self.dtype)
        out = jnp.einsum("...d,vd->...v", x, matrix, precision=self._precision, preferred_element_type=_sums(matrix))
        return softcapped(_scaled(out, a.logit_scale), a.final_softcap)

    # --- a block -----------------------------------------------------------------------------------------------------

    def block(self, i: Index) -> Blocks:
        """The parameters of one block, on the device."""

        def of_block(stacked: Array) -> Array:
            on_host = self.offloaded and stacked.ndim == 3
            return to_device(stacked, i) if on_host else lax.dynamic_index_in_dim(stacked, i, keepdims=False)

        graph, state = nnx.split(self.blocks)
        return nnx.merge(graph, jax.tree.map(of_block, state))

    def apply_block(self, block, i, x, attention_context, *, update_kv=None, hook=None):
        """The stream after a block.

        Args:
            block: the parameters of the block.
            i: its number.
            x: the stream before it, ``[n, t, d]``.
            attention_context: where its tokens are, and what they can attend to.
            update_kv: takes the new keys and values, ``[n, k, t, h]``, and gives all that `attention_context` speaks of.
            hook: what is done at the sites of the block.
        """
        attended = self.attention(block, i, x, attention_context, update_kv)
        return self.mlp(block, i, attended, hook=hook, pre_attention_stream=x)

    def attention(self, block, i, x, attention_context, update_kv=None):
        """The stream after attention; the arguments are those of `apply_block`."""
        h = self.pre_norm(x, block, "attention_norm")
        key, value = self.keys_values(block, i, h, attention_context.rope)
        if update_kv is not None:
            key, value = update_kv(key, value)
        return x + self.attention_output(block, i, h, key, value, attention_context)

    def keys_values(self, block, i, h, rope):
        """Keys, with their rotary positions, and values, ``[n, k, T, h]``: heads first, as attention reads them."""
        a = self.config
        key = self._heads(h, block, "key", a.num_kv_heads)
        value = self._project(h, block, "value").reshape(*h.shape[:-1], a.num_kv_heads, a.head_dim)
        return heads_first(self._apply_rope(key, i, rope)), heads_first(value)

    def attention_output(self, block, i, h, key, value, attention_context):
        """The output of attention that is added to the stream.

        Args:
            block: its parameters.
            i: its number.
            h: the stream after the norm, ``[n, t, d]``.
            key, value: those of `attention_context.slots`, ``[n, k, S, h]``.
            attention_context: where the tokens of h are, and what they can attend to.
        """
        a = self.config
        query = self._apply_rope(self._heads(h, block, "query", a.num_heads), i, attention_context.rope)
        n, t = h.shape[:2]
        grouped = query.reshape(n, t, a.num_kv_heads, a.num_heads // a.num_kv_heads, a.head_dim)

        def attend(query: Array, positions: Array) -> Array:
            return self._attended(i, query, positions, key, value, attention_context)

        outputs = in_parts(attend, MOST_QUERIES, grouped, attention_context.positions)
        return self.post_norm_and_scale(
            self._project(outputs.reshape(n, t, a.num_heads * a.head_dim), block, "out"), block, "after_attention_norm"
        )

    def _attended(self, i, query, positions, key, value, attention_context):
        """The mean of the values by the attention of queries at some positions, ``[n, t, k, g, h]``, as the queries are."""
        a, window = self.config, self._window(i)
        scores = _scores(query, key, self._precision)
        mask = attention_context.slots.mask(positions, window)
        prefix = attention_context.prefix
        if prefix is not None:
            # Two products and no joined keys: those of the prefix are the same for all strengths of a sweep.
            prefix_scores = jnp.einsum("ntkgh,nksh->nkgts", query, prefix.key[:, i], precision=self._precision)
            scores = jnp.concatenate([prefix_scores, scores], axis=-1)
            mask = jnp.concatenate([prefix.slots.mask(positions, window), mask], axis=-1)
        scores = softcapped(wide(scores) * a.query_scale, a.attention_softcap)
        attention_weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASK_VALUE), axis=-1).astype(self.dtype)
        if prefix is None:
            return _weighted_values(attention_weights, value, self._precision)
        prefix_weights, attention_weights = jnp.split(attention_weights, [prefix.key.shape[-2]], axis=-1)
        outputs = jnp.einsum("nkgts,nksh->ntkgh", prefix_weights, prefix.value[:, i], precision=self._precision)
        return outputs + _weighted_values(attention_weights, value, self._precision)

    def _heads(self, h, block, name, count):
        """Queries or keys, head by head, normalised where the architecture has it."""
        a = self.config
        x = self._project(h, block, name)
        if a.whole_qk_norm:
            x = self.normalise(x, block, f"{name}_norm")
        x = x.reshape(*h.shape[:-1], count, a.head_dim)
        return self.normalise(x, block, f"{name}_norm") if a.qk_norm and not a.whole_qk_norm else x

    def mlp(self, block, i, x, *, hook=None, pre_attention_stream=None):
        """The stream after the MLP, which is the stream after the block.

        Args:
            block: the parameters of the block.
            i: its number.
            x: the stream after attention.
            hook: what is done at the sites of the block.
            pre_attention_stream: the stream before attention, which the MLP reads in an architecture whose MLP is parallel
                to it.
        """
        a = self.config
        h = self.pre_norm(pre_attention_stream if a.parallel_residual else x, block, "mlp_norm")
        inner = self._project(h, block, "up")
        if a.gated:
            inner = _activation(self._project(h, block, "gate"), a.activation) * inner
        else:
            inner = _activation(inner, a.activation)
        added = self._project(inner, block, "down")
        added = added if hook is None else hook("mlp_down", i, inner, added)
        x = x + self.post_norm_and_scale(added, block, "after_mlp_norm")
        return x if hook is None else hook("residual", i, x, x)

    def pre_norm(self, x, block, name):
        """The input of attention or MLP: the stream, through the norm of that name if there is one."""
        return self.normalise(x, block, name) if self.config.pre_norm else x

    def post_norm_and_scale(self, added, block, name):
        """The addition of attention or MLP: their output, through the norm of that name if there is one, and scaled."""
        a = self.config
        return _scaled(self.normalise(added, block, name) if a.post_norm else added, a.residual_scale)

    def normalise(self, x: Float[Array, "*n d"], holder: Any, name: str) -> Float[Array, "*n d"]:
        """The norm of that name, computed in float32 at least."""
        a = self.config
        x = wide(x)
        gamma = getattr(holder, name)[...].astype(x.dtype)
        bias = getattr(holder, f"{name}_bias")[...].astype(x.dtype) if a.norm == "layer" else None
        return norm(x, gamma, bias, kind=a.norm, eps=a.eps).astype(self.dtype)

    def rope(self, positions: Int[Array, "n T"]) -> Any:
        """Cosines and sines of every kind of rotary positions, ``[kinds, n, T, pairs]``; None without.

        A last kind turns nothing, where there are layers without positions. Where frequencies depend on the length of a
        sequence, the last of its positions tells.
        """
        a = self.config
        if not a.ropes:
            return None

        def of_all(values: list[Any], unturned: Any) -> Array:
            return jnp.asarray([*values, *([unturned] if a.nope_layers else [])], jnp.float32)

        nothing = (0.0,) * a.ropes[0].pairs(a.head_dim)
        frequencies = of_all([rope.frequencies(a.head_dim) for rope in a.ropes], nothing)[:, None, None, :]
        if a.longrope_switch_length is not None:
            others = of_all([rope.frequencies(a.head_dim, long=True) for rope in a.ropes], nothing)[:, None, None, :]
            is_long = positions[None, :, -1:, None] >= a.longrope_switch_length
            frequencies = jnp.where(is_long, others, frequencies)
        angles = positions.astype(jnp.float32)[..., None] * frequencies
        sizes = of_all([rope.attention_factor for rope in a.ropes], 1.0)[:, None, None, None]
        return jnp.cos(angles) * sizes, jnp.sin(angles) * sizes

    def _apply_rope(self, x: Float[Array, "n T k h"], i: Index, rope: Any) -> Float[Array, "n T k h"]:
        if rope is None:
            return x
        kinds = self.config.rope_kind_of_layer
        which = jnp.asarray(kinds)[i] if any(kinds) else 0
        cos, sin = (t[which][:, :, None, :].astype(x.dtype) for t in rope)
        pairs = cos.shape[-1]
        low, high, rest = jnp.split(x, (pairs, 2 * pairs), axis=-1)
        turned = [low * cos - high * sin, high * cos + low * sin]
        return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)

    def _window(self, i: Index) -> Index | None:
        windows = self.config.windows
        if not any(windows):
            return None
        return jnp.asarray([window or jnp.iinfo(jnp.int32).max for window in windows])[i]

    @property
    def _precision(self) -> lax.Precision:
        """The precision that products are asked for."""
        return of_products(self.dtype, fast=self.fast)

    def _project(self, x: Array, block: Blocks, name: str) -> Array:
        weights, bias = getattr(block, name)[...].astype(self.dtype), getattr(block, f"{name}_bias", None)
        out = jnp.matmul(x, weights, precision=self._precision, preferred_element_type=_sums(weights))
        return (out if bias is None else out + bias[...].astype(self.dtype)).astype(self.dtype)


def in_parts(function: Callable[..., Array], most: int, *arrays: Array) -> Array:
    """A function of arrays ``[n, t, ...]`` that treats positions alike, some positions at a time.

    Args:
        function: from arrays of fewer positions to an array of as many, ``[n, t, ...]``.
        most: positions at a time. Up to so many, it is called once.
        arrays: ``[n, t, ...]``.
    """
    n, t = arrays[0].shape[:2]
    if t <= most:
        return function(*arrays)
    parts = -(-t // most)
    size = -(-t // parts)

    def in_rows(array: Array) -> Array:
        # The last part is filled up with positions whose results are thrown away.
        filled = jnp.concatenate([array, jnp.repeat(array[:, -1:], parts * size - t, axis=1)], axis=1)
        return jnp.moveaxis(filled.reshape(n, parts, size, *array.shape[2:]), 1, 0)

    # In reverse mode each part is computed again: kept, they would take the memory that is to be saved.
    outputs = lax.map(jax.checkpoint(lambda rows: function(*rows)), tuple(map(in_rows, arrays)))
    return jnp.moveaxis(outputs, 0, 1).reshape(n, parts * size, *outputs.shape[3:])[:, :t]


def _sums(x: Array) -> jnp.dtype:
    """The type that products of arrays like x add up in: float32 at least.

    Devices do so with half types anyway, but XLA uses a CPU's units for bfloat16 (AMX) only where it is asked for. There it
    has such products of two matrices, or of as many in a batch, and not of all other arrays.
    """
    return jnp.promote_types(x.dtype, jnp.float32)


def heads_first(x: Float[Array, "n T k h"]) -> Float[Array, "n k T h"]:
    """Heads before positions."""
    return lax.transpose(x, (0, 2, 1, 3))


# Of one query, products of tiny matrices are several times slower than a sum that the compiler fuses.


def _scores(
    query: Float[Array, "n t k g h"], key: Float[Array, "n k s h"], precision: lax.Precision
) -> Float[Array, "n k g t s"]:
    if query.shape[1] > 1:
        n, t, k, g, h = query.shape
        rows = lax.reshape(lax.transpose(query, (0, 2, 3, 1, 4)), (n, k, g * t, h))
        out = jnp.einsum("nkrh,nksh->nkrs", rows, key, precision=precision, preferred_element_type=_sums(query))
        return lax.reshape(out, (n, k, g, t, key.shape[2]))
    return jnp.sum(query[:, 0, :, :, None, :] * key[:, :, None], axis=-1)[:, :, :, None]


def _weighted_values(
    attention_weights: Float[Array, "n k g t s"], value: Float[Array, "n k s h"], precision: lax.Precision
) -> Float[Array, "n t k g h"]:
    n, k, g, t, s = attention_weights.shape
    if t > 1:
        rows = lax.reshape(attention_weights, (n, k, g * t, s))
        out = jnp.einsum("nkrs,nksh->nkrh", rows, value, precision=precision, preferred_element_type=_sums(value))
        out = lax.transpose(lax.reshape(out, (n, k, g, t, value.shape[-1])), (0, 3, 1, 2, 4))
        return out.astype(value.dtype)
    return jnp.sum(attention_weights[:, :, :, 0, :, None] * value[:, :, None], axis=-2)[:, None]


def softcapped(x: Array, cap: float | None) -> Array:
    """``cap tanh(x / cap)``, or x."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def select_position(values: Array, position: Int[Array, " n"]) -> Array:
    """One position of every sequence, ``[n, T, ...]`` to ``[n, 1, ...]``."""
    # A product and not a gather, and below primitives and not NumPy's functions: Taylor mode goes through these only.
    positions = lax.broadcasted_iota(position.dtype, values.shape[:2], 1)
    chosen = positions == lax.broadcast_in_dim(position, values.shape[:2], (0,))
    exact = of_products(values.dtype)
    return jnp.einsum("nt,nt...->n...", chosen.astype(values.dtype), values, precision=exact)[:, None]


def _activation(x: Array, kind: str) -> Array:
    if kind in ("silu", "relu"):
        return jax.nn.silu(x) if kind == "silu" else jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=kind == "gelu_tanh")


def _scaled(x: Array, by: float) -> Array:
    # In float32 at least: rounded to bfloat16, a factor of 0.22 would be off by a thousandth.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x if by == 1 else (x.astype(wide) * jnp.asarray(by, wide)).astype(x.dtype)
