"""How far assumption 2 of S holds: whether a model's next-token probabilities are its data's, as far as text can tell.

A context of a hundred tokens hardly ever comes twice, so its next-token frequencies are not known. What can be compared are
averages over the text: over all occurrences of a last token, and over the tokens of a concept, here the case of letters.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sim.bridge.model import LanguageModel
from sim.bridge.split import all_logits
from sim.experiments.gpt.letter_case import CASES, LOWER, NONE, case_of_tokens, case_so_far
from ufm._check import require
from ufm.precision import full

TOGETHER = 16
"""Rows of text that the model is asked about at once."""


@dataclass(frozen=True)
class Fidelity:
    """A model beside a text; nats per token.

    Attributes:
        tokens: how many were predicted.
        loss: cross-entropy on the text.
        unigram, bigram: entropies of the text's frequencies, of a token and of a token given the one before it.
        last_token: ``KL(frequencies || model)`` of the next token given the last, weighted by how often the last occurs; the
            model's probabilities are averaged over the occurrences.
        perfect: the same for a perfect model: the mean over texts whose next tokens the model draws.
        perfect_deviation: the deviation of that.
        same_case: share of tokens with letters, after some, that go on in the same case.
        same_case_model: the probability of that under the model, given letters.
        letters: how many tokens that is over; the two are None if it is none.
    """

    tokens: int
    loss: float
    unigram: float
    bigram: float
    last_token: float
    perfect: float
    perfect_deviation: float
    same_case: float | None
    same_case_model: float | None
    letters: int

    def as_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def fidelity(model: LanguageModel, tokens: Int[np.ndarray, " N"], length: int, *, draws: int = 4, seed: int = 0) -> Fidelity:
    """Compare a model with a text, in sequences of the length that the model was trained on.

    The comparison holds two arrays of V by V numbers.

    Args:
        model: with a tokenizer.
        tokens: the text.
        length: of a sequence.
        draws: texts that the model draws, one next token for each context, to see what a perfect model would show.
        seed: of these.

    Raises:
        ValueError: no tokenizer; text that is shorter than one sequence; fewer than two draws.
    """
    tokenizer = model.tokenizer
    require(tokenizer is not None, "model", "one with a tokenizer", "none")
    assert tokenizer is not None
    require(tokenizer.eos is not None, "tokenizer", "one with a token that ends documents", "none")
    assert tokenizer.eos is not None
    require(tokens.size > length, "tokens", f"more than {length}", tokens.size)
    require(draws >= 2, "draws", "at least 2", draws)
    v, cases = model.config.vocab_size, np.full(model.config.vocab_size, NONE)
    cases[: tokenizer.size] = case_of_tokens(tokenizer)[:v]
    starts = np.arange(0, tokens.size - length, length)
    rows = tokens[starts[:, None] + np.arange(length + 1)]
    last, following = rows[:, :-1], rows[:, 1:]
    masks = jnp.asarray(cases[:, None] == np.arange(len(CASES)), jnp.float32)
    total = jnp.zeros((v, v))
    losses: list[np.ndarray] = []
    by_case: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    for k in range(0, len(rows), TOGETHER):
        # The last rows are filled up with others that do not count, so that there is one program.
        batch = jnp.asarray(rows[np.arange(k, k + TOGETHER) % len(rows)])
        counts = jnp.arange(k, k + TOGETHER) < len(rows)
        logits = all_logits(model.decoder, batch[:, :-1], jnp.ones((TOGETHER, length), bool))
        key = jax.random.fold_in(jax.random.key(seed), k)
        total, loss, case, draw = _add(total, logits, batch, counts, masks, jax.random.split(key, draws))
        losses.append(np.asarray(loss))
        by_case.append(np.asarray(case))
        drawn.append(np.asarray(draw))
    # Of draws the first axis is the draw: one array for each, as long as the text.
    texts = np.concatenate(drawn, axis=1)[:, : len(rows)].reshape(draws, -1)
    sums = np.asarray(total, float)
    noise = [_divergence(last.ravel(), text, sums) for text in texts]
    share, probability, letters = _same_case(rows, np.concatenate(by_case)[: len(rows)], cases, tokenizer.eos)
    frequencies = np.bincount(following.ravel(), minlength=v) / following.size
    return Fidelity(
        tokens=int(following.size),
        loss=float(np.concatenate(losses)[: len(rows)].mean(dtype=float)),
        unigram=_entropy(frequencies),
        bigram=_conditional_entropy(last.ravel(), following.ravel(), v),
        last_token=_divergence(last.ravel(), following.ravel(), sums),
        perfect=float(np.mean(noise)),
        perfect_deviation=float(np.std(noise, ddof=1)),
        same_case=share,
        same_case_model=probability,
        letters=letters,
    )


@jax.jit
@full
def _add(
    total: Array, logits: Array, rows: Array, counts: Array, masks: Array, keys: Array
) -> tuple[Array, Array, Array, Array]:
    """Add the probabilities of rows that count to those of their last tokens.

    Also the loss at every position, the probabilities of cases, and draws, ``[D, n, T]``.
    """
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    loss = -jnp.take_along_axis(log_p, rows[:, 1:, None], axis=-1)[..., 0]
    # By the inverse of the distribution function: a uniform number for each draw, where the usual way takes V of them.
    upto = jnp.cumsum(p, axis=-1)

    def draw(key: Array) -> Array:
        places = jax.vmap(jnp.searchsorted)(upto.reshape(-1, upto.shape[-1]), jax.random.uniform(key, (loss.size,)))
        return jnp.minimum(places, p.shape[-1] - 1).reshape(loss.shape)

    drawn = jax.lax.map(draw, keys)
    added = (p * counts[:, None, None]).reshape(-1, p.shape[-1])
    return total.at[rows[:, :-1].ravel()].add(added), loss, p @ masks, drawn


def _divergence(last: np.ndarray, following: np.ndarray, sums: Float[np.ndarray, "V V"]) -> float:
    """``KL(frequencies || model)`` of the next token given the last, nats, from the sums of the model's probabilities."""
    v = sums.shape[0]
    pairs, counts = np.unique(last.astype(np.int64) * v + following, return_counts=True)
    of_last = np.bincount(last, minlength=v)[pairs // v]
    model = sums[pairs // v, pairs % v] / of_last
    return float(np.sum(counts * np.log(counts / of_last / model)) / last.size)


def _conditional_entropy(last: np.ndarray, following: np.ndarray, v: int) -> float:
    """The entropy of a token given the one before it, nats."""
    pairs = np.unique(last.astype(np.int64) * v + following, return_counts=True)[1]
    return _entropy(pairs / last.size) - _entropy(np.bincount(last, minlength=v) / last.size)


def _entropy(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-np.sum(positive * np.log(positive)))


def _same_case(
    rows: Int[np.ndarray, "n T"], by_case: Float[np.ndarray, "n t 3"], cases: np.ndarray, end: int
) -> tuple[float | None, float | None, int]:
    """Share of tokens that go on in the same case, its probability under the model, and how many tokens that is over."""
    before, after = case_so_far(rows, cases, end)[:, :-1], cases[rows[:, 1:]]
    counted = (before != NONE) & (after != NONE)
    if not counted.any():
        return None, None, 0
    same = np.take_along_axis(by_case, np.minimum(before, LOWER)[..., None], axis=-1)[..., 0][counted]
    letters = by_case[..., :NONE].sum(axis=-1)[counted]
    return float(np.mean(before[counted] == after[counted])), float(np.mean(same / letters)), int(counted.sum())
