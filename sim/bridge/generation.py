"""Generation with a key-value cache, steered or not: greedy or sampled, batched, compiled once per shape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.decoder import AttentionContext, Decoder, KeySlots, SiteHook, select_position
from ufm._check import finite_number, whole_number
from ufm._pytree import Leaf, pytree, static
from ufm.distributions import kl
from ufm.kl_cap import factor_within
from ufm.precision import wide
from ufm.steering import Stack, Steering, Tokens, at_block, last_of, positions_of, stacks


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
        temperature = finite_number("temperature", self.temperature, "a finite number of at least 0", lambda x: x >= 0)
        top_p = finite_number("top_p", self.top_p, "a probability above 0", lambda p: 0 < p <= 1)
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_p", top_p)
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
    rank = jax.random.categorical(key, jnp.where(ordered >= floor, ordered, -jnp.inf), axis=-1)
    sampled = jnp.take_along_axis(tokens, rank[..., None], axis=-1)[..., 0]
    return jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


@pytree
@dataclass(frozen=True)
class Sampler:
    """A `Sampling` as a compiled program takes it: other values of its arrays do not compile again.

    Attributes:
        key: of the randomness.
        temperature, top_k, top_p: as `sample` takes them.
        sort: see `sample`.
        greedy: whether the likeliest token is taken each time, whatever the rest.
    """

    key: jax.Array | Leaf
    temperature: Float[Array, ""] | Leaf
    top_k: Int[Array, ""] | Leaf
    top_p: Float[Array, ""] | Leaf
    sort: int | None = static(default=None)
    greedy: bool = static(default=False)

    @classmethod
    def of(cls, sampling: Sampling, key: jax.Array, vocab_size: int) -> "Sampler":
        """The sampler of a vocabulary of this size."""
        most = vocab_size if sampling.top_k is None else min(sampling.top_k, vocab_size)
        temperature, top_k, top_p = map(jnp.asarray, (sampling.temperature, most, sampling.top_p))
        return cls(key, temperature, top_k, top_p, sampling.sort, sampling.temperature == 0)

    def next_tokens(self, k: Any, logits: Float[Array, "n V"]) -> Int[Array, " n"]:
        """The k-th new token of every sequence."""
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        key = jax.random.fold_in(self.key, k)
        return sample(key, logits, self.temperature, self.top_k, self.top_p, sort=self.sort)


def generate(
    decoder: Decoder,
    tokens: Int[Array, "n T"],
    mask: Bool[Array, "n T"],
    sampler: Sampler,
    eos_ids: Int[Array, " e"],
    steering: Steering | None,
    alpha: Float[Array, "n k"],
    *,
    max_new_tokens: int,
    num_return_sequences: int = 1,
) -> tuple[Int[Array, "m new"], Int[Array, " m"], Bool[Array, ""], "KLCapped | None"]:
    """New tokens after prompts that are padded on the left.

    Args:
        decoder: the model.
        tokens, mask: the prompts, and which of it is not padding.
        sampler: what chooses the next tokens.
        eos_ids: tokens that end a sequence; what follows is filled with the first of them.
        steering: whose parts all have layers; None for nothing. If it has a budget, strengths are lowered by one factor for
            the prompt and one for each new token, where a prediction would cost more.
        alpha: the strength of each part, for each prompt.
        max_new_tokens: of each sequence.
        num_return_sequences: continuations of every prompt, which is computed once for all of them: m is n times as
            many, in this order.

    Returns:
        The tokens, how many of each sequence are its own (its end included), and whether all logits were finite on the way;
        where they were not, it stopped. With a budget, what it took to keep to it.
    """
    t, parts, budget = tokens.shape[1], [], None
    if steering is not None:
        parts, budget = stacks(steering), steering.budget
    sequences, capped = _prefilled(decoder, tokens, mask, parts, alpha, max_new_tokens, budget)
    sequences = sequences.repeated(num_return_sequences)
    capped = None if capped is None else capped.repeated(num_return_sequences)

    def progress(k: Any, x: Array, cache: Cache, out: Array, lengths: Array, ended: Array, capped: Any) -> Progress:
        logits = decoder.logits(x)
        added, finite = sampler.next_tokens(k, logits), jnp.isfinite(logits).all(axis=-1)
        return Progress(k, cache, out, lengths, ended, added, finite, capped)

    def advance(state: Progress) -> Progress:
        k, cache, out, lengths, ended, added, _, capped = state
        out = lax.dynamic_update_index_in_dim(out, jnp.where(ended, eos_ids[0], added), k, 1)
        step = partial(_decode_step, decoder, added, sequences.last + 1 + k, t + k)
        x, cache, capped = _read(decoder, step, sequences._replace(cache=cache), parts, k + 1, capped, budget)
        now_ended = ended | jnp.any(added[:, None] == eos_ids, axis=1)
        return progress(k + 1, x, cache, out, lengths + ~ended, now_ended, capped)

    def unfinished(state: Progress) -> Bool[Array, ""]:
        return (state.k < max_new_tokens) & ~jnp.all(state.ended) & jnp.all(state.finite | state.ended)

    m = sequences.prompt.shape[0]
    out, lengths, ended = jnp.full((m, max_new_tokens), eos_ids[0], jnp.int32), jnp.zeros(m, jnp.int32), jnp.zeros(m, bool)
    start = progress(jnp.asarray(0), sequences.stream, sequences.cache, out, lengths, ended, capped)
    end = lax.while_loop(unfinished, advance, start)
    # What comes after the last token is not asked for.
    good = (end.k >= max_new_tokens) | jnp.all(end.finite | end.ended)
    return end.out, end.lengths, good, end.capped


compiled = jax.jit(generate, static_argnames=("max_new_tokens", "num_return_sequences"))
"""`generate`, compiled once for each shape."""


Cache = tuple[Float[Array, "L n k S h"], ...]
"""Keys and values of every block, in slots for a prompt and for what is generated. Blocks lead, and not sequences as in
`sim.bridge.decoder.PrefixKV`, since each block writes to its own."""


class Sequences(NamedTuple):
    """Sequences whose prompts have been read.

    Attributes:
        stream: after all blocks, at the last token of the prompt.
        cache: keys and values.
        slots: of the cache; those of new tokens come after those of the prompts.
        last: the position of the last token of the prompt.
        prompt: which prompt it is.
        alpha: strength of each part of the steering.
    """

    stream: Float[Array, "n d"]
    cache: Cache
    slots: KeySlots
    last: Int[Array, "n 1"]
    prompt: Int[Array, " n"]
    alpha: Float[Array, "n k"]

    def repeated(self, times: int) -> "Sequences":
        """Each of them so many times."""
        if times == 1:
            return self
        cache = tuple(jnp.repeat(leaf, times, axis=1) for leaf in self.cache)
        rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), self._replace(cache=()))
        return rows._replace(cache=cache)

    def scaled_by(self, factor: Float[Array, " n"]) -> "Sequences":
        """These sequences with their strengths times a factor."""
        return self._replace(alpha=self.alpha * factor[:, None])


class KLCapped(NamedTuple):
    """Predictions whose cost is capped: what that needs, and gives.

    Attributes:
        cache: keys and values of the unsteered model.
        factors: on the strengths.
        costs: KL from the unsteered to the steered prediction of each new token, nats.
    """

    cache: Cache
    factors: Float[Array, "m new"]
    costs: Float[Array, "m new"]

    def repeated(self, times: int) -> "KLCapped":
        """Each sequence so many times."""
        cache = tuple(jnp.repeat(leaf, times, axis=1) for leaf in self.cache)
        return KLCapped(cache, *(jnp.repeat(rows, times, axis=0) for rows in (self.factors, self.costs)))

    def then(self, k: Any, cache: Cache, factor: Array, cost: Array) -> "KLCapped":
        """After a new token: what the k-th prediction was steered by, and cost; the one after the last is left out."""
        return KLCapped(cache, self.factors.at[:, k].set(factor, mode="drop"), self.costs.at[:, k].set(cost, mode="drop"))


class Progress(NamedTuple):
    """The state that a step of generation hands to the next.

    Attributes:
        k: how many tokens each sequence has.
        cache: keys and values, of all these tokens.
        out: the tokens.
        lengths: how many of them are the sequence's own.
        ended: whether it has ended.
        next_tokens: the next one.
        finite: whether all logits that it was chosen by are finite.
        capped: where costs are capped by a budget.
    """

    k: Int[Array, ""]
    cache: Cache
    out: Int[Array, "m new"]
    lengths: Int[Array, " m"]
    ended: Bool[Array, " m"]
    next_tokens: Int[Array, " m"]
    finite: Bool[Array, " m"]
    capped: KLCapped | None


def _prefill(
    decoder: Decoder, tokens: Array, mask: Array, parts: list[Stack], alpha: Array, max_new_tokens: int
) -> Sequences:
    """Read prompts, with room in the cache for what follows."""
    a, (n, t) = decoder.config, tokens.shape
    positions, prompts = positions_of(mask), jnp.arange(n)
    last = positions[:, -1:]
    # A slot whose token is not yet written is at a later position than all queries: they do not attend to it.
    slots = KeySlots(
        jnp.concatenate([positions, last + 1 + jnp.arange(max_new_tokens)], axis=1),
        jnp.concatenate([mask, jnp.ones((n, max_new_tokens), bool)], axis=1),
    )
    empty = jnp.zeros((a.num_layers, n, a.num_kv_heads, t + max_new_tokens, a.head_dim), decoder.dtype)
    hook = partial(at_block, parts, alpha=alpha, chosen=lambda selection: selection.chosen(mask, prompts))
    x, cache = _run(decoder, tokens, positions, slots, (empty, empty), 0, hook)
    return Sequences(select_position(x, last_of(mask))[:, 0], cache, slots, last, prompts, alpha)


def _prefilled(
    decoder: Decoder, tokens: Array, mask: Array, parts: list[Stack], alpha: Array, max_new_tokens: int, budget: Array | None
) -> tuple[Sequences, KLCapped | None]:
    """Prompts that have been read, within a budget if there is one."""

    def read(parts: list[Stack], alpha: Array) -> Sequences:
        return _prefill(decoder, tokens, mask, parts, alpha, max_new_tokens)

    if budget is None:
        return read(parts, alpha), None

    def steered(factor: Array) -> tuple[Array, Cache]:
        sequences = read(parts, alpha * factor[:, None])
        return sequences.stream, sequences.cache

    base = read([], alpha)
    (stream, cache), factor, cost = _within_kl_budget(decoder, steered, base.stream, budget)
    rows = [jnp.zeros((len(x), max_new_tokens), x.dtype).at[:, 0].set(x) for x in (factor, cost)]
    return base._replace(stream=stream, cache=cache), KLCapped(base.cache, *rows)


def _read(
    decoder: Decoder, step: Any, sequences: Sequences, parts: list[Stack], k: Any, capped: KLCapped | None, budget: Any
) -> tuple[Array, Cache, KLCapped | None]:
    """The stream of a new token of every sequence, the cache with it, and what capping the cost of prediction k took.

    Args:
        decoder: the model.
        step: reads the token after sequences, steered by parts.
        sequences, parts: as they are.
        k: the number of the prediction.
        capped: up to here; None if strengths stay as they are.
        budget: nats.
    """
    if capped is None:
        return *step(sequences, parts), None
    base, unsteered = step(sequences._replace(cache=capped.cache), [])
    (x, cache), factor, cost = _within_kl_budget(
        decoder, lambda factor: step(sequences.scaled_by(factor), parts), base, budget
    )
    return x, cache, capped.then(k, unsteered, factor, cost)


def _within_kl_budget(
    decoder: Decoder, read: Callable[[Array], tuple[Array, Cache]], base: Float[Array, "n d"], budget: Any
) -> tuple[tuple[Array, Cache], Float[Array, " n"], Float[Array, " n"]]:
    """The reading at the factor on the strengths that keeps predictions within a budget, the factor, and their cost.

    Args:
        decoder: the model.
        read: from a factor for each sequence to the stream after all blocks, and the cache.
        base: the stream of the unsteered model.
        budget: nats.
    """

    def predictions(x: Array) -> Array:
        return jax.nn.log_softmax(wide(decoder.logits(x)), axis=-1)

    log_p = predictions(base)
    factor = factor_within(lambda factor: predictions(read(factor)[0]), log_p, budget)
    result = read(factor)
    return result, factor, kl(log_p, predictions(result[0]))


def _decode_step(
    decoder: Decoder, tokens: Int[Array, " m"], position: Array, slot: Any, sequences: Sequences, parts: list[Stack]
) -> tuple[Float[Array, "m d"], Cache]:
    """The stream of a new token of every sequence after all blocks, and the cache with it in its slot."""

    def chosen(selection: Tokens) -> Bool[Array, "m 1"] | None:
        selected = selection.chosen_new(position[:, 0], sequences.prompt)
        return None if selected is None else selected[:, None]

    hook = partial(at_block, parts, alpha=sequences.alpha, chosen=chosen)
    x, cache = _run(decoder, tokens[:, None], position, sequences.slots, sequences.cache, slot, hook)
    return x[:, 0], cache


def _run(
    decoder: Decoder, tokens: Array, positions: Array, slots: KeySlots, cache: Cache, first: Any, hook: SiteHook
) -> tuple[Float[Array, "n t d"], Cache]:
    """The stream of tokens after all blocks, and the cache with their keys and values from slot `first` on."""
    attention_context = AttentionContext(positions, decoder.rope(positions), slots)

    def step(i: Any, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        x, cache = carry

        def written(*added: Array) -> tuple[Array, ...]:
            nonlocal cache
            # What a block reads is taken out before it is written to: of a slice of what has just been written the
            # compiler makes a second write, into a copy of the whole cache.
            kept = jax.tree.map(lambda blocks, new: lax.dynamic_update_slice(blocks[i], new, (0, 0, first, 0)), cache, added)
            cache = jax.tree.map(lambda blocks, new: lax.dynamic_update_index_in_dim(blocks, new, i, 0), cache, kept)
            return kept

        x = decoder.apply_block(decoder.block(i), i, x, attention_context, update_kv=written, hook=hook)
        return x, cache

    return lax.fori_loop(0, decoder.config.num_layers, step, (decoder.embed(tokens, positions), cache))
