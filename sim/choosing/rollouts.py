"""Texts that a steered model writes after prompts, and what steering does to every prediction of their tokens.

Costs are measured on fixed text: the unsteered and the steered model predict the same tokens, each from the states where it
is steered, which are computed once for all strengths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.bridge.readout import readout
from sim.bridge.split import Split
from sim.directions.vector import length_of
from theory.budgets import binary_divergence
from ufm._check import indices, require, whole_number
from ufm._pytree import Leaf, pytree, static
from ufm.distributions import kl
from ufm.interventions import Add
from ufm.normalised import as_seen
from ufm.precision import in_float64, wide
from ufm.steerable import in_batches
from ufm.steering import RESIDUAL, After, All, Last, State, Steering

LIFT, GAIN = (2.0, 1.0, 0.0), 0.5
"""Where no tokens are named, the concept is among those whose log-probability steering lifts, in the prompts and to first
order, by more than so many standard deviations (the first number that any token passes): the fewest that gain such a part of
what these gain in probability."""

KEPT = 2**29
"""Unsteered predictions of so many probabilities at most are kept in memory: 2 GiB in float32."""

DETERMINISTIC = 0.05
"""Entropy, in nats, below which the first predictions of a text are left out: the form of a chat decides them, no strength
moves them, and an average over them would make a budget look free."""


@dataclass(frozen=True)
class Rollouts:
    """Texts written after prompts.

    Attributes:
        prompts: token ids of each prompt.
        tokens: what follows, ``[n, h]``; after an end, anything.
        counted: which of it the model wrote, the end included, ``[n, h]``.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: Int[np.ndarray, "n h"]
    counted: Bool[np.ndarray, "n h"]

    @property
    def horizon(self) -> int:
        """Tokens of the longest continuation, h."""
        return self.tokens.shape[1]

    @property
    def rows(self) -> list[list[int]]:
        """Prompts and continuations in one."""
        return [[*prompt, *map(int, after)] for prompt, after in zip(self.prompts, self.tokens, strict=True)]

    @property
    def repeating(self) -> Bool[np.ndarray, " n"]:
        """Which texts repeat themselves: fewer than half of their pairs of neighbouring tokens are distinct."""
        pairs = [list(pairwise(row[own].tolist())) for row, own in zip(self.tokens, self.counted, strict=True)]
        return np.array([len(own) > 4 and len(set(own)) < len(own) / 2 for own in pairs])

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.prompts)) + self.horizon


@dataclass(frozen=True)
class Writer:
    """How texts are written: the same randomness for all strengths.

    Attributes:
        lm: the model.
        prompts: token ids of each prompt.
        horizon: tokens of a continuation.
        sampling: how the next token is chosen.
        seed: of the randomness.
    """

    lm: LanguageModel
    prompts: tuple[tuple[int, ...], ...]
    horizon: int
    sampling: Sampling
    seed: int

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        prompts: Any,
        horizon: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        chat: bool = False,
    ) -> "Writer":
        """A function that continues prompts, drawing from the model's probabilities unless `sampling` is given.

        Args:
            lm: the model.
            prompts: texts, token ids, or chats.
            horizon, sampling, seed: as above.
            chat: whether prompts are what a user says.

        Raises:
            ValueError: as `LanguageModel.contexts`; a horizon below 1, a negative seed.
        """
        ids, mask = lm.contexts(prompts, chat=chat, room=whole_number("horizon", horizon, 1))
        rows = tuple(tuple(map(int, row[real])) for row, real in zip(ids, mask, strict=True))
        sampling = Sampling(temperature=1.0) if sampling is None else sampling
        return cls(lm, rows, horizon, sampling, whole_number("seed", seed, 0))

    def __call__(self, steering: Steering | None = None, alpha: Any = 0.0) -> Rollouts:
        """Continuations of all prompts at a strength, one for all or one for each prompt."""
        generated = self.lm.generate(
            list(self.prompts),
            max_new_tokens=self.horizon,
            sampling=self.sampling,
            seed=self.seed,
            steering=steering,
            alpha=alpha,
        )
        ends = (0,) if self.lm.tokenizer is None else self.lm.tokenizer.eos_ids or (0,)
        tokens = np.full((len(self.prompts), self.horizon), ends[0], np.int32)
        counted = np.zeros(tokens.shape, bool)
        for row, (written, ended) in enumerate(zip(generated.tokens, generated.ended, strict=True)):
            tokens[row, : len(written)] = written
            counted[row, : len(written) + ended] = True
        return Rollouts(self.prompts, tokens, counted)

    @property
    def prompt_texts(self) -> list[Any]:
        """The prompts as text, or as token ids for a model without a tokenizer."""
        tokenizer = self.lm.tokenizer
        return [list(row) if tokenizer is None else tokenizer.decode(row) for row in self.prompts]

    def texts(self, rollouts: Rollouts) -> tuple[str, ...]:
        """What was written, as text."""
        tokenizer = self.lm.tokenizer
        rows = [tokens[own].tolist() for tokens, own in zip(rollouts.tokens, rollouts.counted, strict=True)]
        return () if tokenizer is None else tuple(tokenizer.decode(row) for row in rows)


class Effects(NamedTuple):
    """What a strength does to each counted prediction, ``[n, h]`` but for the last; NaN where a prediction is not counted.

    Attributes:
        kl: from the unsteered to the steered prediction, nats.
        reverse_kl: from the steered to the unsteered one.
        loss: cross-entropy of the unsteered model on what the steered one writes next.
        share: probability of the concept's tokens under the steered model.
        share_slope: derivative of `share` by the strength; NaN where it was not asked for.
        counted: which predictions are counted.
        shown: the probability that a text which was written at the strength shows the concept, ``[n]``; NaN where nobody
            was asked.
    """

    kl: Float[np.ndarray, "n h"]
    reverse_kl: Float[np.ndarray, "n h"]
    loss: Float[np.ndarray, "n h"]
    share: Float[np.ndarray, "n h"]
    share_slope: Float[np.ndarray, "n h"]
    counted: Bool[np.ndarray, "n h"]
    shown: Float[np.ndarray, " n"]

    @property
    def is_finite(self) -> bool:
        """Whether the strength gave numbers."""
        return bool(np.isfinite(self.kl[self.counted]).all())


class Tilt(NamedTuple):
    """How predictions move with the strength at 0, from one JVP; ``[n, h]`` each, NaN where a prediction is not counted.

    Attributes:
        variance: of the slopes of the logits, under the unsteered prediction: twice the curvature of KL (N9).
        above, below: the largest slope less the mean one, and the mean one less the least.
        covariance: of the slopes and membership in the concept: the slope of its share.
        share: probability of the concept's tokens.
    """

    variance: Float[np.ndarray, "n h"]
    above: Float[np.ndarray, "n h"]
    below: Float[np.ndarray, "n h"]
    covariance: Float[np.ndarray, "n h"]
    share: Float[np.ndarray, "n h"]


class Promotion(NamedTuple):
    """What steering does to each token at strength 0, the mean over predictions, ``[V]`` each.

    Attributes:
        gain: slope of its probability.
        lift: slope of its log-probability, in standard deviations over tokens.
    """

    gain: Any
    lift: Any


@dataclass(frozen=True)
class FixedText:
    """Texts, split where a steering acts, with what is the same for all strengths.

    Attributes:
        rollouts: the texts; what is not counted is left out of all that is measured.
        split, steering: as `Split.resolve` gives them.
        states: where the split is, of all texts.
        streams: what the last norm is given before each token of the continuations, unsteered, ``[n, h, d]``.
        entropy: of the unsteered predictions, ``[n, h]``.
        log_p: those predictions, ``[n, h, V]``, where they are small enough to be kept.
    """

    rollouts: Rollouts
    split: Split
    steering: Steering
    states: State
    streams: Array
    entropy: Float[np.ndarray, "n h"]
    log_p: Array | None

    @classmethod
    def of(cls, lm: LanguageModel, rollouts: Rollouts, steering: Steering, *, skip: bool = True) -> "FixedText":
        """Texts as a steering finds them.

        Args:
            lm: the model.
            rollouts: the texts.
            steering: what is to act on them, with a layer for every part.
            skip: whether the first predictions are left out as long as they are deterministic.

        Raises:
            ValueError: tokens that are chosen by a mask: a text has others than a prompt.
        """
        own = _for_texts(steering, [len(prompt) for prompt in rollouts.prompts])
        split = lm.split(rollouts.rows, length=rollouts.length, last_only=False)
        split, parts = split.resolve(own)
        keep = keeps_predictions(rollouts, lm.config.vocab_size)
        states, streams, entropy, log_p = _unsteered(split, rollouts.horizon, keep=keep)
        entropy = np.asarray(entropy, float)
        counted = rollouts.counted
        if skip:
            begun = np.logical_or.accumulate(entropy > DETERMINISTIC, axis=1) & counted
            counted = begun if begun.any() else counted
        return cls(replace(rollouts, counted=counted), split, parts, states, streams, entropy, log_p)

    @classmethod
    def of_layers(cls, lm: LanguageModel, rollouts: Rollouts, steerings: Mapping[int, Steering]) -> "dict[int, FixedText]":
        """Texts as steerings after several blocks find them, the states after all blocks from one pass; no predictions kept.

        Args:
            lm: the model.
            rollouts: the texts; all that is counted is kept.
            steerings: by the one block that each acts after, at the residual stream.
        """
        split = lm.split(rollouts.rows, length=rollouts.length, last_only=False)
        states, streams, entropy = _unsteered_after_all(split, rollouts.horizon)
        entropy = np.asarray(entropy, float)
        texts = {}
        for layer, steering in steerings.items():
            resolved, parts = split.resolve(_for_texts(steering, [len(prompt) for prompt in rollouts.prompts]))
            at_layer = replace(states, stream=wide(states.stream[:, layer]))
            texts[layer] = cls(rollouts, resolved, parts, at_layer, streams, entropy, None)
        return texts

    def under(self, steering: Steering) -> "FixedText":
        """These texts as another steering finds them, one that first acts where this one does; nothing is computed again."""
        return replace(self, steering=self.split.resolve(_for_texts(steering, [len(x) for x in self.rollouts.prompts]))[1])

    def effects(self, alpha: float, members: Bool[Array, " V"], *, slope: bool = False) -> Effects:
        """What a strength does to each prediction.

        Args:
            alpha: the strength.
            members: the concept's tokens.
            slope: whether to differentiate the share.
        """
        strength = jnp.asarray(alpha, wide(self.streams).dtype)
        values = _effects(
            self.split, self.steering, strength, self.states, self.streams, self.log_p, members, self.last_step, slope=slope
        )
        unknown = np.full(len(self.rollouts.prompts), np.nan)
        return Effects(*map(self._counted, values), self.rollouts.counted, unknown)  # type: ignore[call-arg]

    def tilt(self, members: Bool[Array, " V"], logit_slopes: Array | None = None) -> tuple[Tilt, Promotion]:
        """How predictions move at strength 0, and which tokens that promotes.

        Args:
            members: the concept's tokens.
            logit_slopes: what `logit_slopes` gives; computed again, and not kept, if left out.
        """
        counted, known = jnp.asarray(self.rollouts.counted), None if logit_slopes is None else (self.log_p, logit_slopes)
        values, promoted = _tilt(self.split, self.streams, self.slopes, members, counted, known)
        gain, lift = (np.asarray(total, float) for total in promoted)
        return Tilt(*(self._counted(value) for value in values)), Promotion(gain, lift)

    def logit_slopes(self) -> Float[Array, "n h V"] | None:
        """The derivative of the logits by the strength at 0; None where it and the predictions are too large to be kept."""
        if self.log_p is None or 2 * self.log_p.size > KEPT:
            return None
        return _logit_slopes(self.split, self.streams, self.slopes)

    @cached_property
    def slopes(self) -> Float[Array, "n h d"]:
        """The derivative of `streams` by the strength at 0."""
        return _slopes(self.split, self.steering, self.states, self.rollouts.horizon)

    @cached_property
    def last_step(self) -> "LastStep | None":
        """What turns kept predictions into steered ones, where a vector is added after the last block."""
        split, v = self.split, added_vector(self.steering)
        if v is None or self.log_p is None or split.site != RESIDUAL:
            return None
        a = split.decoder.config
        return _last_step(split, v) if int(split.layer) == a.num_layers - 1 and a.final_softcap is None else None

    @cached_property
    def scale(self) -> float:
        """The median length of the states where they are steered."""
        lengths = np.linalg.norm(np.asarray(self.states.stream, float), axis=-1)
        return float(np.median(lengths[np.asarray(self.states.mask)]))

    def shares(self, members: Bool[Array, " V"]) -> Float[np.ndarray, "n h"]:
        """The probability of the concept's tokens in the unsteered predictions, ``[n, h]``."""
        return self._counted(_shares(self.split, self.streams, self.log_p, members))

    def _counted(self, values: Any) -> Float[np.ndarray, "n h"]:
        return np.where(self.rollouts.counted, np.asarray(values, float), np.nan)


@pytree
@dataclass(frozen=True)
class LastStep:
    """The last norm and the unembedding, as they act on ``x + alpha v``: by two numbers for each prediction (N7).

    Attributes:
        v: the vector, ``[d]``.
        pull: what its direction adds to the logits, ``W (gamma * v)``, with v as the norm sees it, ``[V]``.
        offset: what the norm's bias adds to them, ``[V]``.
        eps, kind: of the norm.
    """

    v: Float[Array, " d"] | Leaf
    pull: Float[Array, " V"] | Leaf
    offset: Float[Array, " V"] | Leaf
    eps: Float[Array, ""] | Leaf
    kind: str = static()

    def predictions(
        self, log_p: Float[Array, "h V"], before: Float[Array, "h d"], after: Float[Array, "h d"]
    ) -> Float[Array, "h V"]:
        """Log-probabilities of streams to which multiples of v were added, from those of the streams before."""
        before, after = wide(before), wide(after)
        sizes = [jnp.sqrt(jnp.mean(as_seen(x, self.kind) ** 2, axis=-1) + self.eps) for x in (before, after)]
        added = (after - before) @ self.v / (self.v @ self.v)
        tempered = (sizes[0] / sizes[1])[:, None] * (log_p - self.offset)
        return jax.nn.log_softmax(tempered + (added / sizes[1])[:, None] * self.pull + self.offset, axis=-1)


def _last_step(split: Split, v: Float[Array, " d"]) -> LastStep:
    out, v = readout(split), wide(v)
    with jax.default_matmul_precision("highest"):
        pull = out.W @ (out.gamma * as_seen(v, out.kind))
        offset = jnp.zeros_like(pull) if out.bias is None else out.W @ out.bias
    return LastStep(v, pull, offset, out.eps, out.kind)


def keeps_predictions(rollouts: Rollouts, vocab_size: int) -> bool:
    """Whether the unsteered predictions of texts are kept, rather than computed again for every strength."""
    return rollouts.tokens.size * vocab_size <= KEPT


def least_cost(before: Float[np.ndarray, "*n"], after: Float[np.ndarray, "*n"]) -> float:
    """Nats per token that any intervention pays for a change of the mean share, over what is not NaN (N15).

    What it pays to change every prediction's share like this is more: KL is convex, and need not be spent alike.
    """
    counted = ~np.isnan(before)
    means = (np.clip(np.mean(shares[counted], dtype=float), 1e-12, 1 - 1e-12) for shares in (before, after))
    with in_float64():  # in float32 a share near 1 would be 1
        return float(binary_divergence(*means))


def members_of(tokens: Any, vocab_size: int) -> Bool[np.ndarray, " V"]:
    """Which tokens are among some, ``[V]``.

    Raises:
        ValueError: tokens that the model does not have.
    """
    members = np.zeros(vocab_size, bool)
    members[indices("tokens", tokens, vocab_size, of="tokens")] = True
    return members


def promoted(promotion: Promotion, sign: int) -> np.ndarray:
    """The tokens that a steering stands for, ``[V]``: see `LIFT`."""
    rise, lift = np.maximum(sign * promotion.gain, 0), sign * promotion.lift
    gain = next((gain for least in LIFT if (gain := np.where(lift > least, rise, 0)).any()), rise)
    order = np.argsort(-gain)
    members = np.zeros(gain.size, bool)
    members[order[: int(np.searchsorted(np.cumsum(gain[order]), GAIN * gain.sum())) + 1]] = True
    return members & (gain > 0)


def added_vector(steering: Steering) -> Array | None:
    """The vector, if adding one is all that a steering does."""
    intervention = steering.parts[0].intervention
    return jnp.asarray(intervention.v) if len(steering.parts) == 1 and isinstance(intervention, Add) else None


def moves(variance: Float[np.ndarray, " m"], vector: Any) -> bool:
    """Whether a steering changes predictions.

    Args:
        variance: of the slopes of the logits of each prediction.
        vector: what is added, ``[d]``; None if the steering is something else.

    Raises:
        ValueError: it changes them by more than float32 can hold.
    """
    got = "one that is too large" if vector is None else f"a vector of length {length_of(np.asarray(vector)):.3g}: scale it"
    require(bool(np.isfinite(variance).all()), "steering", "one whose effect float32 can hold", got)
    return bool(variance.max() > 0)


def require_moving(variance: Float[np.ndarray, " m"], vector: Any) -> None:
    """Refuse a steering that changes no prediction.

    Args:
        variance, vector: as for `moves`.

    Raises:
        ValueError: it changes none, or by more than float32 can hold.
    """
    length = None if vector is None else length_of(np.asarray(vector))
    too_short = f"a vector of length {length:.3g}, which is too short" if length else "a zero vector"
    got = "one that changes none" if length is None else too_short
    require(moves(variance, vector), "steering", "one that changes predictions", got)


def prompts_alone(prompts: Sequence[Sequence[int]]) -> Rollouts:
    """Prompts as texts of their own: every token but the first of a prompt is what follows it.

    Raises:
        ValueError: prompts of one token each.
    """
    longest = max(len(prompt) for prompt in prompts) - 1
    require(longest >= 1, "prompts", "prompts of at least two tokens", "single tokens")
    heads = tuple((prompt[0],) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int32)
    counted = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt) - 1] = prompt[1:]
        counted[row, : len(prompt) - 1] = True
    return Rollouts(heads, tokens, counted)


def _for_texts(steering: Steering, lengths: Sequence[int]) -> Steering:
    """A steering that acts on a text where the same one acts while the text is written."""
    parts = []
    for part in steering.parts:
        tokens = part.tokens
        if isinstance(tokens, Last):
            tokens = After(jnp.asarray(lengths) - 1)
        known = isinstance(tokens, All | After)
        require(known, "tokens", "All(), Last() or After(...), which say what becomes of new tokens", repr(part.tokens))
        parts.append(replace(part, tokens=tokens))
    return Steering.of(parts)


def _predictions(split: Split, stream: Float[Array, "h d"]) -> Float[Array, "h V"]:
    return jax.nn.log_softmax(wide(split.decoder.logits(stream)), axis=-1)


def _before(stream: Float[Array, "T d"], horizon: int) -> Float[Array, "h d"]:
    """The positions that predict the last `horizon` tokens."""
    return stream[-horizon - 1 : -1]


@partial(jax.jit, static_argnames=("horizon", "keep"))
def _unsteered(split, horizon, *, keep):
    def of(j):
        state = split.embed(j)
        stream = _before(split.before_norm(state), horizon)
        log_p = _predictions(split, stream)
        return state, stream, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1), log_p if keep else None

    return in_batches(split, of, jnp.arange(split.n_contexts))


@partial(jax.jit, static_argnames="horizon")
def _unsteered_after_all(split, horizon):
    def of(j):
        states = split.embed_all(j[None])
        stream = _before(states.stream[-1, 0], horizon)
        log_p = _predictions(split, stream)
        state = State(states.stream[:, 0], split.mask[j], j)
        return state, stream, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return in_batches(split, of, jnp.arange(split.n_contexts))


@jax.jit
def _shares(split, streams, kept, members):
    def of(pair):
        stream, log_p = pair
        log_p = _predictions(split, stream) if log_p is None else log_p
        return jnp.sum(jnp.where(members, jnp.exp(log_p), 0), axis=-1)

    return in_batches(split, of, (streams, kept))


@partial(jax.jit, static_argnames="slope")
def _effects(split, steering, alpha, states, streams, kept, members, last, *, slope):
    horizon = streams.shape[1]

    def of(pair):
        state, stream, log_p = pair

        def steered(strength):
            after = _before(split.before_norm(state, steering, strength), horizon)
            return _predictions(split, after) if last is None else last.predictions(log_p, stream, after)

        log_p = _predictions(split, stream) if log_p is None else log_p
        log_q = steered(alpha)
        q = jnp.exp(log_q)
        share = jnp.sum(jnp.where(members, q, 0), axis=-1)
        derivative = jnp.full_like(share, jnp.nan)
        if slope:

            def of_concept(strength):
                return jnp.sum(jnp.where(members, jnp.exp(steered(strength)), 0), axis=-1)

            derivative = jax.jvp(of_concept, (alpha,), (jnp.ones_like(alpha),))[1]
        return kl(log_p, log_q), kl(log_q, log_p), -jnp.sum(q * log_p, axis=-1), share, derivative

    return in_batches(split, of, (states, streams, kept))


@partial(jax.jit, static_argnames="horizon")
def _slopes(split, steering, states, horizon):
    kind = wide(states.stream).dtype

    def of(state):
        def steered(strength):
            return _before(split.before_norm(state, steering, strength), horizon)

        return jax.jvp(steered, (jnp.zeros((), kind),), (jnp.ones((), kind),))[1]

    return in_batches(split, of, states)


def _logits(split, stream, slope):
    """Logits, and their derivative along one of the stream."""
    return jax.jvp(lambda x: wide(split.decoder.logits(x)), (stream,), (slope,))


@jax.jit
def _logit_slopes(split, streams, slopes):
    return in_batches(split, lambda text: _logits(split, *text)[1], (streams, slopes))


@jax.jit
def _tilt(split, streams, slopes, members, counted, known):
    def of(text):
        stream, slope, own, log_p_and_slopes = text
        logits, derivative = _logits(split, stream, slope) if log_p_and_slopes is None else log_p_and_slopes
        p = jax.nn.softmax(logits, axis=-1)
        off = derivative - jnp.sum(p * derivative, axis=-1, keepdims=True)
        inside = jnp.where(members, p, 0)
        values = Tilt(
            jnp.sum(p * off * off, axis=-1),
            off.max(axis=-1),
            -off.min(axis=-1),
            jnp.sum(inside * off, axis=-1),
            inside.sum(axis=-1),
        )
        weight = own[:, None]
        deviation = jnp.sqrt(jnp.maximum(values.variance, jnp.finfo(off.dtype).tiny))[:, None]
        return values, Promotion(jnp.sum(weight * p * off, axis=0), jnp.sum(weight * off / deviation, axis=0))

    values, sums = in_batches(split, of, (streams, slopes, counted, known))
    return values, jax.tree.map(lambda total: total.sum(axis=0) / counted.sum(), sums)
