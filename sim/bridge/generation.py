"""Generation with a key-value cache, steered or not: greedy or sampled, batched, compiled once per shape."""

import numbers
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.decoder import Decoder, Place, Slots, only_at
from ufm._check import require, shown, whole_number
from ufm.steering import Steering, Tokens, at_block, last_of, positions_of, stacks


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: of the softmax; 0 takes the likeliest token.
        top_k: only the k likeliest tokens; None for all.
        top_p: only the likeliest tokens that together have this probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            require(isinstance(value, numbers.Real), name, "a number", shown(value))
        finite = 0 <= self.temperature < float("inf")
        require(finite, "temperature", "a finite number of at least 0", self.temperature)
        require(0 < self.top_p <= 1, "top_p", "a probability above 0", self.top_p)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)

    @property
    def sort(self) -> int | None:
        """How many tokens `sample` has to look at: none, a few, or all."""
        if self.top_k is None:
            return 0 if self.top_p == 1 else None
        return CANDIDATES if self.top_k <= CANDIDATES else None


CANDIDATES = 256
"""Tokens that are sorted where top_k allows no more: sorting a whole vocabulary costs more than a block."""


def sample(
    key: jax.Array, logits: Float[Array, "n V"], temperature: Any, top_k: Any, top_p: Any, *, sort: int | None = None
) -> Int[Array, " n"]:
    """The next token of every sequence.

    Args:
        key: of the randomness.
        logits: of the next token.
        temperature, top_k, top_p: see `Sampling`; arrays, so that other values do not compile again. A top_k of V keeps all.
        sort: how many of the likeliest tokens are looked at, at least top_k; V if left out, and 0 for drawing from all,
            whatever top_k and top_p.
    """
    v = logits.shape[-1]
    scaled = logits.astype(jnp.float32) / jnp.maximum(temperature, 1e-6)
    if sort == 0:
        sampled = jax.random.categorical(key, scaled, axis=-1)
        return jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
    ordered, tokens = lax.top_k(scaled, v if sort is None else min(sort, v))
    floor = jnp.take_along_axis(
        ordered, jnp.broadcast_to(jnp.clip(top_k, 1, ordered.shape[-1]) - 1, (*logits.shape[:-1], 1)), axis=-1
    )
    # Of the tokens that are left, the likeliest whose predecessors have not reached top_p; the first always stays.
    kept = jax.nn.softmax(jnp.where(ordered >= floor, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(kept, axis=-1) - kept
    last = jnp.sum((before < top_p) & (kept > 0), axis=-1, keepdims=True) - 1
    floor = jnp.maximum(floor, jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1))
    place = jax.random.categorical(key, jnp.where(ordered >= floor, ordered, -jnp.inf), axis=-1)
    sampled = jnp.take_along_axis(tokens, place[..., None], axis=-1)[..., 0]
    return jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def generate(
    decoder: Decoder,
    tokens: Int[Array, "n T"],
    mask: Bool[Array, "n T"],
    key: jax.Array,
    settings: tuple[Any, Any, Any],
    eos_ids: Int[Array, " e"],
    steering: Steering | None,
    alpha: Float[Array, "n k"],
    *,
    max_new_tokens: int,
    sampled: bool,
    sort: int | None = None,
    num_return_sequences: int = 1,
) -> tuple[Int[Array, "m new"], Int[Array, " m"], Bool[Array, ""]]:
    """New tokens after prompts that are padded on the left.

    Args:
        decoder: the model.
        tokens, mask: the prompts, and which of it is not padding.
        key: of the randomness.
        settings: temperature, top_k and top_p, as `sample` takes them.
        eos_ids: tokens that end a sequence; what follows is filled with the first of them.
        steering: whose parts all have layers; None for nothing.
        alpha: the strength of each part, for each prompt.
        max_new_tokens: of each sequence.
        sampled: False for the likeliest token each time, whatever the settings.
        sort: see `sample`.
        num_return_sequences: continuations of every prompt, which is computed once for all of them: m is n times as
            many, in this order.

    Returns:
        The tokens, how many of each sequence are its own (its end included), and whether all logits were finite on the way;
        where they were not, it stopped.
    """
    a = decoder.config
    n, t = tokens.shape
    slots = t + max_new_tokens

    def repeated(x, axis=0):
        return x if num_return_sequences == 1 or x is None else jnp.repeat(x, num_return_sequences, axis=axis)

    positions = positions_of(mask)
    empty = jnp.zeros((a.num_layers, n, a.num_kv_heads, slots, a.head_dim), decoder.dtype)
    # A slot that nothing has been written to is not seen; a generated token sees all that is.
    places = jnp.concatenate([positions, positions[:, -1:] + 1 + jnp.arange(max_new_tokens)], axis=1)
    filled = jnp.concatenate([mask, jnp.ones((n, max_new_tokens), bool)], axis=1)
    parts = [] if steering is None else stacks(steering)

    def forward(ids, at, keys, steered, cache, first):
        """The stream of some tokens after all blocks, and the cache with their keys and values from slot `first` on."""
        place = Place(at, decoder.rope(at), keys)
        strengths, chosen = steered

        def act(site, i, x, y):
            return at_block(parts, site, i, x, y, strengths, chosen)

        def step(i, carry):
            x, all_keys, all_values = carry
            block = decoder.block(i)

            def written(key, value):
                nonlocal all_keys, all_values
                # What a block reads is taken out before it is written to: of a slice of what has just been written the
                # compiler makes a second write, into a copy of the whole cache.
                one_key, one_value = (
                    lax.dynamic_update_slice(cached[i], added, (0, 0, first, 0))
                    for cached, added in ((all_keys, key), (all_values, value))
                )
                all_keys = lax.dynamic_update_index_in_dim(all_keys, one_key, i, 0)
                all_values = lax.dynamic_update_index_in_dim(all_values, one_value, i, 0)
                return one_key, one_value

            return decoder.through(block, i, x, place, cache=written, act=act), all_keys, all_values

        x, *cache = lax.fori_loop(0, a.num_layers, step, (decoder.embed(ids, at), *cache))
        return x, tuple(cache)

    def in_prompt(tokens: Tokens) -> Bool[Array, "n T"] | None:
        return tokens.chosen(mask, jnp.arange(n))

    x, cache = forward(tokens, positions, Slots(places, filled), (alpha, in_prompt), (empty, empty), 0)
    last = repeated(only_at(x, last_of(mask))[:, 0])
    cache, alpha, ends_at = tuple(repeated(block, 1) for block in cache), repeated(alpha), repeated(positions[:, -1:])
    keys, context, n = Slots(repeated(places), repeated(filled)), repeated(jnp.arange(n)), n * num_return_sequences

    def pick(k, x):
        """The next tokens, and of which sequences all logits are finite."""
        logits = decoder.logits(x)
        chosen = sample(jax.random.fold_in(key, k), logits, *settings, sort=sort) if sampled else greedy(logits)
        return chosen, jnp.isfinite(logits).all(axis=-1)

    def greedy(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def unfinished(carry):
        k, _, (_, good), _, _, over = carry
        return (k < max_new_tokens) & ~jnp.all(over) & jnp.all(good | over)

    def advance(carry):
        k, out, (chosen, _), cache, lengths, over = carry
        out = lax.dynamic_update_index_in_dim(out, jnp.where(over, eos_ids[0], chosen), k, 1)
        lengths = lengths + ~over
        over = over | jnp.any(chosen[:, None] == eos_ids, axis=1)
        at = ends_at + 1 + k

        def is_chosen(tokens: Tokens) -> Bool[Array, "n 1"] | None:
            chosen = tokens.chosen_new(at[:, 0], context)
            return None if chosen is None else chosen[:, None]

        x, cache = forward(chosen[:, None], at, keys, (alpha, is_chosen), cache, t + k)
        return k + 1, out, pick(k + 1, x[:, 0]), cache, lengths, over

    out = jnp.full((n, max_new_tokens), eos_ids[0], jnp.int32)
    nothing = jnp.zeros(n, jnp.int32)
    start = (jnp.asarray(0), out, pick(0, last), cache, nothing, jnp.zeros(n, bool))
    k, out, (_, good), _, lengths, over = lax.while_loop(unfinished, advance, start)
    # What comes after the last token is not asked for.
    return out, lengths, (k >= max_new_tokens) | jnp.all(good | over)


compiled = nnx.jit(generate, static_argnames=("max_new_tokens", "sampled", "sort", "num_return_sequences"))
"""`generate`, compiled once for each shape."""
