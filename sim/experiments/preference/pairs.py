"""Paired answers as tokens, and how likely a model with an update finds them (W, arXiv:2602.02343)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.model import LanguageModel
from sim.bridge.split import Split
from sim.directions.states import answer_row
from sim.directions.texts import Pair
from sim.measure.tradeoff import SIDES
from ufm import Answers, State, Steering
from ufm._check import require


class Encoded(NamedTuple):
    """Pairs as tokens; the answers of pair k are rows 2k (matching) and 2k + 1.

    Attributes:
        rows: question and answer.
        counts: how many tokens at the end of a row are its answer.
    """

    rows: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.rows) // 2

    def subset(self, numbers: Sequence[int] | np.ndarray) -> "Encoded":
        """The pairs with these numbers, as another `Encoded`."""
        which = [2 * int(k) + side for k in numbers for side in (0, 1)]
        return Encoded(tuple(self.rows[k] for k in which), tuple(self.counts[k] for k in which))

    @property
    def questions(self) -> tuple[tuple[int, ...], ...]:
        """The questions alone, up to where an answer begins."""
        return tuple(row[:-count] for row, count in zip(self.rows[::2], self.counts[::2], strict=True))

    @property
    def first(self) -> Int[np.ndarray, "n 2"]:
        """The first token of each answer."""
        every = [row[-count] for row, count in zip(self.rows, self.counts, strict=True)]
        return np.asarray(every, np.int32).reshape(-1, 2)


def encode(lm: LanguageModel, pairs: Sequence[Pair], *, chat: bool = False) -> Encoded:
    """Pairs as the model reads them.

    Args:
        lm: gives the tokenizer.
        pairs: at least one.
        chat: whether questions are put into its chat template, if it has one; they are named "Question" and "Answer" if not.

    Raises:
        ValueError: no pairs, an answer of no tokens or whose first is part of the question's last, a pair that is too long
            for the model.
    """
    require(len(pairs) > 0, "pairs", "at least one", "none")
    rows, counts = [], []
    for k, pair in enumerate(pairs):
        for side in SIDES:
            row = answer_row(lm, pair.question, getattr(pair, side), chat=chat, where=f"{side} of pair {k}")
            rows.append(tuple(row.ids))
            counts.append(len(row.ids) - row.start)
    return Encoded(tuple(rows), tuple(counts))


class Asked(NamedTuple):
    """Pairs before a model that is split: a pytree.

    Attributes:
        split: whose contexts are the rows, padded on the left.
        targets: the last tokens of every row, ``[2n, A]``.
        counted: which of these belong to the answer, ``[2n, A]``.
    """

    split: Split
    targets: Int[Array, "rows A"]
    counted: Bool[Array, "rows A"]


def ask(lm: LanguageModel, encoded: Encoded, layer: int, *, site: str, length: int, answer: int) -> Asked:
    """The rows before a model split at a layer, for updates at a site.

    Args:
        lm: the model.
        encoded: the pairs.
        layer: the block.
        site: "residual" or "mlp_down".
        length, answer: tokens of a row and of an answer, at most: one program serves all pairs padded to them.
    """
    split = lm.split(encoded.rows, layer, length=length, last_only=False, site=site).statically()
    counted = np.arange(answer) >= answer - np.asarray(encoded.counts)[:, None]
    return Asked(split, split.tokens[:, -answer:], jnp.asarray(counted))


def answers(
    asked: Asked, states: State, steering: Steering, alpha: Float[Array, " rows"], which: Int[Array, " rows"]
) -> Answers:
    """How likely the answers of some pairs are under a steering.

    Args:
        asked: the pairs.
        states: of the rows `which`, those of a pair one after the other.
        steering: where the model is split.
        alpha: the strength of each.
        which: rows of `asked`.
    """
    targets, counted = asked.targets[which], asked.counted[which]
    x = jax.vmap(partial(asked.split.before_norm, steering=steering))(states, alpha=alpha)
    logits = asked.split.decoder.logits(x[:, -targets.shape[1] - 1 : -1])
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    total = jnp.sum(jnp.where(counted, chosen, 0), axis=1).reshape(-1, 2)
    tokens = jnp.sum(counted, axis=1).astype(total.dtype).reshape(-1, 2)
    return Answers(total[:, 0], total[:, 1], tokens[:, 0], tokens[:, 1])
