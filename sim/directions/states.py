"""What a model's states say about two sets of texts, for every layer in one pass: a mean for each text over chosen tokens.

The states of attention sinks (the first token, and others whose norm is a large multiple of the text's median) are up to a
hundred times as long as the rest and hardly depend on the text. A mean over all tokens has a share of them that falls with
the length of the text, so that sets of different lengths differ along them. By default they are left out, and a place in the
text counts less the fewer texts of either set reach it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.decoder import Decoder
from sim.bridge.model import LanguageModel
from sim.bridge.split import all_states
from sim.bridge.tokenizer import Tokenizer
from sim.progress import bar
from ufm._check import in_range, require, shown, whole_number
from ufm.precision import of_products, wide

SELECTIONS = ("content", "answer", "all", "last")
"""Which tokens are averaged, by name; a number k stands for the last k."""

SINK = 5.0
"""A state whose norm is more than this multiple of the median of its text, at any layer, is an attention sink."""

REACH = 0.75
"""Texts are read as far as more than this share of either set reaches."""


@dataclass(frozen=True)
class TextStates:
    """The mean state of every text over its chosen tokens, at all layers.

    Attributes:
        positive, negative: of the texts of each set, ``[L, n, d]`` and ``[L, m, d]``, float32.
        sinks: mean state of the attention sinks of both sets, ``[L, d]``.
        scales: median norm of the states that were averaged, ``[L]``.
        tokens: how many tokens of each text were averaged, ``[n + m]``.
        left_out: how many were sinks, in all texts.
        places: how much the first, second, ... token of a text counted (`place_weights`); None if all that were chosen
            counted alike.
    """

    positive: Float[np.ndarray, "L n d"]
    negative: Float[np.ndarray, "L m d"]
    sinks: Float[np.ndarray, "L d"]
    scales: Float[np.ndarray, " L"]
    tokens: Int[np.ndarray, " texts"]
    left_out: int
    places: Float[np.ndarray, " k"] | None


class TokenStates(NamedTuple):
    """The states of the single tokens of some texts after a block.

    Attributes:
        states: ``[N, d]``, float32.
        texts: the number of the text that each token is from, ``[N]``.
        weights: how much it counts there, ``[N]``.
    """

    states: Float[np.ndarray, "N d"]
    texts: Int[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"]


class Row(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: its tokens, those around it (of a question, a chat, the tokenizer) included.
        start: how many are before it.
        end: as far as it goes: the number of its last token, and one.
    """

    ids: list[int]
    start: int
    end: int

    @property
    def length(self) -> int:
        """How many tokens the text itself has."""
        return self.end - self.start


def text_states(
    lm: LanguageModel,
    positive: Any,
    negative: Any,
    *,
    questions: Any = None,
    tokens: Any = "content",
    chat: bool = False,
    budget: int | None = None,
    progress: bool | None = False,
) -> TextStates:
    """The mean state of every text of two sets, from one pass over each text.

    Args:
        lm: the model.
        positive, negative: texts, or token ids.
        questions: what the texts of each set answer, in the same order: only the tokens of the answers are then averaged.
        tokens: which are averaged: "content", all of a text but attention sinks, as far as most texts of either set reach,
            by `place_weights` (what a tokenizer or a chat puts around it is no part of it, nor the first token of a row);
            "answer" (with questions), all of the text itself; "all", as in the paper (S, section 5); "last", of the text, or
            of the whole chat; a number k for the last k; or a mask for each text of each set, ``(positive, negative)``, true
            where a token of the row counts.
        chat: whether questions, or the texts themselves, are put into the form of a chat.
        budget: numbers that are held at once; what suits the device if left out.
        progress: whether to show a bar; None for one on a terminal.

    Raises:
        ValueError: an empty set, questions of another number, an unknown selection, a text that has none of the tokens asked
            for, states that are not finite; as `LanguageModel.contexts`.
    """
    sets = {"positive": _listed("positive", positive), "negative": _listed("negative", negative)}
    asked = None if questions is None else _listed("questions", questions)
    if asked is not None:
        for name, texts in sets.items():
            require(len(texts) == len(asked), name, f"an answer to each of the {len(asked)} questions", len(texts))
    rows = {name: [_row(lm, name, k, text, asked, chat) for k, text in enumerate(texts)] for name, texts in sets.items()}
    every = [*rows["positive"], *rows["negative"]]
    names = [f"text {k} of {name}" for name, group in rows.items() for k in range(len(group))]
    chosen, places = _chosen(tokens, rows, names, asked is not None, chat)
    leave_out = isinstance(tokens, str) and tokens == "content"
    read = mean_states(
        lm, [row.ids for row in every], chosen, names=names, leave_out=leave_out, budget=budget, progress=progress
    )
    n, scales = len(rows["positive"]), np.median(read.norms, axis=1)
    return TextStates(read.means[:, :n], read.means[:, n:], read.sink, scales, read.tokens, read.sinks, places)


def token_states(
    lm: LanguageModel,
    texts: Any,
    layer: int,
    *,
    questions: Any = None,
    chat: bool = False,
    places: Float[np.ndarray, " k"] | None = None,
    budget: int | None = None,
    progress: bool | None = False,
) -> Iterator[TokenStates]:
    """The states of the single tokens of texts after a block, in batches of texts; attention sinks are left out.

    Args:
        lm: the model.
        texts: texts, or token ids.
        layer: the block.
        questions, chat, budget, progress: as for `text_states`.
        places: how much the first, second, ... token of a text counts; those beyond are not read. All count alike if left
            out.

    Raises:
        ValueError: a block that the model does not have, no texts, questions of another number, places that are no weights,
            a text of attention sinks alone, states that are not finite; as `LanguageModel.contexts`.
    """
    listed = _listed("texts", texts)
    asked = None if questions is None else _listed("questions", questions)
    require(asked is None or len(asked) == len(listed), "questions", f"one to each of {len(listed)} texts", len(asked or []))
    block = whole_number("layer", layer, 0)
    last = lm.config.num_layers - 1
    require(block <= last, "layer", f"a block from 0 to {last}", block)
    rows = [_row(lm, "texts", k, text, asked, chat) for k, text in enumerate(listed)]
    if places is None:
        places = np.ones(max(row.length for row in rows))
    else:
        expected = "finite weights of at least 0, and not all of them 0"
        in_range("places", places, expected, lambda x: (np.isfinite(x) & (x >= 0)).all() and x.any())
    chosen = [content(row, places) for row in rows]
    return _read_tokens(lm, [row.ids for row in rows], chosen, block, budget, progress)


def _read_tokens(
    lm: LanguageModel,
    rows: list[list[int]],
    chosen: list[np.ndarray],
    layer: int,
    budget: int | None,
    progress: bool | None,
) -> Iterator[TokenStates]:
    """The batches of `token_states`."""
    for batch, arrays in _padded(lm, rows, chosen, budget, progress):
        states, kept = (np.asarray(value) for value in _compiled_content(lm.decoder, *arrays, jnp.asarray(layer)))
        # The last batch is filled up with a text of the batch, which counts once.
        numbers, first = np.unique(batch, return_index=True)
        states, kept = states[first], kept[first]
        _require_content([f"text {k}" for k in numbers], kept.sum(axis=1))
        require(bool(np.isfinite(states[kept]).all()), "states", "finite numbers", f"others after block {layer}")
        weights = np.asarray(arrays[-1])[first][kept]
        yield TokenStates(states[kept].astype(np.float32), np.repeat(numbers, kept.sum(axis=1)), weights)


def _listed(name: str, texts: Any) -> list[Any]:
    require(not isinstance(texts, str | bytes), name, "a list of texts", f"the one string {shown(texts)}")
    require(hasattr(texts, "__iter__"), name, "a list of texts", shown(texts))
    texts = list(texts)
    require(len(texts) > 0, name, "at least one text", "none")
    return texts


def _row(lm: LanguageModel, name: str, k: int, text: Any, questions: list[Any] | None, chat: bool) -> Row:
    """A text of a set as tokens, after its question if it answers one."""
    if questions is not None:
        return answer_row(lm, questions[k], text, chat=chat, where=f"{name} {k}")
    try:
        ids, mask = lm.contexts([text], chat=chat)
    except ValueError as error:
        raise ValueError(f"{error} (text {k} of {name})") from error
    row = ids[0][mask[0]].tolist()
    tokenizer = lm.tokenizer
    if tokenizer is None or not (chat or isinstance(text, str)):
        return Row(row, 0, len(row))
    if chat:
        return Row(row, *_said(tokenizer, text, len(row)))
    opening, end = tokenizer.opening, len(row) - len(tokenizer.closing)
    return Row(row, len(opening) if row[: len(opening)] == opening else 0, end)


def _said(tokenizer: Tokenizer, chat: Any, length: int) -> tuple[int, int]:
    """The first token of what a chat says last, and the one after its end; the whole chat where that cannot be told."""
    messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
    said = messages[-1].get("content")
    if not isinstance(said, str) or not said.strip():
        return 0, length
    said = said.strip()
    other = [*messages[:-1], {**messages[-1], "content": "-" if said[0] != "-" else "+"}]
    whole, changed = tokenizer.chat(messages), tokenizer.chat(other)
    first = next((k for k, (a, b) in enumerate(zip(whole, changed, strict=False)) if a != b), len(whole))
    if not whole.startswith(said, first):
        return 0, length
    return tokenizer.span(whole, first, first + len(said))


def answer_row(lm: LanguageModel, question: str, answer: str, *, chat: bool = False, where: str = "answer") -> Row:
    """A question and an answer as tokens.

    Args:
        lm: gives the tokenizer.
        question: what is asked.
        answer: what follows it.
        chat: whether the question is put into the chat template, if there is one; the two are named "Question" and "Answer"
            if not.
        where: how errors name the answer.

    Raises:
        ValueError: no tokenizer; something that is no text; an answer of no tokens, or whose first is part of the question's
            last; one that is too long for the model.
    """
    tokenizer, longest = lm.tokenizer, lm.config.max_seq_len
    for name, value in (("questions", question), ("texts", answer)):
        require(isinstance(value, str), name, "a text", f"{shown(value)} ({where})")
    require(tokenizer is not None, "model", "one with a tokenizer", repr(lm.name))
    assert tokenizer is not None
    if chat and tokenizer.template is not None:
        opening = tokenizer.encode(tokenizer.chat([{"role": "user", "content": question}]), special=False)
        ids, after = [*opening, *tokenizer.encode(answer.strip(), special=False)], 0
    else:
        # At once, since some tokenizers put a space before whatever they are given.
        asked = f"Question: {question}\nAnswer:"
        opening, ids = tokenizer.encode(asked), tokenizer.encode(f"{asked} {answer.strip()}".rstrip())
        after = len(tokenizer.closing)
        opening = opening[: len(opening) - after]
    require(ids[: len(opening)] == opening, "pairs", "answers that begin with a token of their own", f"none in {where}")
    require(len(ids) - after > len(opening), "pairs", "answers of at least one token", f"none in {where}")
    require(len(ids) <= longest, "pairs", f"at most {longest} tokens", f"{len(ids)} in {where}")
    return Row(ids, len(opening), len(ids) - after)


def _chosen(
    tokens: Any, rows: dict[str, list[Row]], names: list[str], answers: bool, chat: bool
) -> tuple[list[np.ndarray], Float[np.ndarray, " k"] | None]:
    """Which tokens of each row may count, and how much; and how much each place does, if that decides."""
    every = [*rows["positive"], *rows["negative"]]
    if isinstance(tokens, tuple):
        return _masks(tokens, rows, names), None
    last = 1 if isinstance(tokens, str) and tokens == "last" else tokens
    named = isinstance(tokens, str) and tokens in SELECTIONS
    number = not isinstance(tokens, str | bool) and isinstance(tokens, int | np.integer)
    require(named or number, "tokens", f"one of {', '.join(SELECTIONS)}, a number, or masks", shown(tokens))
    if number or tokens == "last":
        k = whole_number("tokens", last, 1)
        # What follows a text in a chat, up to the answer, belongs to its last tokens; what a tokenizer adds does not.
        whole = [row._replace(end=len(row.ids)) if chat else row for row in every]
        for name, row in zip(names, whole, strict=True):
            require(row.length >= k, name, f"at least {k} tokens", row.length)
        return [_between(row, row.end - k, row.end) for row in whole], None
    if tokens == "all":
        return every_token([row.ids for row in every]), None
    if tokens == "answer":
        require(answers, "tokens", '"answer" with questions only', "no questions")
        return [_between(row, row.start, row.end) for row in every], None
    _require_content(names, [row.end - max(row.start, 1) for row in every])
    weights = place_weights([[row.length for row in group] for group in rows.values()])
    return [content(row, weights) for row in every], weights


def _between(row: Row, first: int, end: int) -> Bool[np.ndarray, " t"]:
    place = np.arange(len(row.ids))
    return (place >= first) & (place < end)


def _masks(tokens: tuple[Any, ...], rows: dict[str, list[Row]], names: list[str]) -> list[np.ndarray]:
    require(len(tokens) == 2, "tokens", "masks for two sets, (positive, negative)", f"{len(tokens)}")
    every = [*rows["positive"], *rows["negative"]]
    for masks in tokens:
        require(isinstance(masks, list | tuple | np.ndarray), "tokens", "a list of masks for each set", shown(masks))
    for (name, group), masks in zip(rows.items(), tokens, strict=True):
        require(len(masks) == len(group), "tokens", f"a mask for each of the {len(group)} texts of {name}", len(masks))
    arrays = [np.asarray(mask) for masks in tokens for mask in masks]
    for name, row, mask in zip(names, every, arrays, strict=True):
        fits = mask.dtype == bool and mask.shape == (len(row.ids),)
        require(fits, f"mask of {name}", f"{len(row.ids)} truth values", f"{mask.dtype} {mask.shape}")
        require(bool(mask.any()), f"mask of {name}", "at least one token", "none")
    return arrays


class MeanStates(NamedTuple):
    """Of some texts, at all layers.

    Attributes:
        means: the mean state of each over the tokens that count, ``[L, n, d]``, float32.
        norms: the median norm of these states, ``[L, n]``.
        tokens: how many they are, ``[n]``.
        sink: mean state of the attention sinks of all texts, ``[L, d]``, float32.
        sinks: how many they are.
    """

    means: Float[np.ndarray, "L n d"]
    norms: Float[np.ndarray, "L n"]
    tokens: Int[np.ndarray, " n"]
    sink: Float[np.ndarray, "L d"]
    sinks: int


def mean_states(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    chosen: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    leave_out: bool,
    budget: int | None = None,
    progress: bool | None = False,
) -> MeanStates:
    """The mean state of every text over some of its tokens.

    Args:
        lm: the model.
        rows: the tokens of every text.
        chosen: how much each of them counts, or which do.
        names: of the texts, for errors.
        leave_out: whether attention sinks do not count.
        budget, progress: as in `text_states`.

    Raises:
        ValueError: a text without a token that counts, states that are not finite.
    """
    n, parts = len(rows), []
    for _, arrays in _padded(lm, rows, chosen, budget, progress):
        values = _compiled_means(lm.decoder, *arrays, leave_out=leave_out)
        parts.append([np.asarray(value) for value in values])
    means, sinks, of_sinks, counted, norms = (
        np.concatenate([part[i] for part in parts], axis=axis)[(slice(None),) * axis + (slice(0, n),)]
        for i, axis in enumerate((1, 1, 0, 0, 1))
    )
    _require_content(names or [f"text {k}" for k in range(n)], counted)
    bad = np.flatnonzero(~np.isfinite(means).all(axis=(1, 2)))
    place = f"others after block {bad[0] if bad.size else None}, in {lm.decoder.dtype.name}"
    require(bad.size == 0, "states", "finite numbers", place)
    sink = np.einsum("lnd->ld", sinks, dtype=np.float64) / max(int(of_sinks.sum()), 1)
    return MeanStates(means.astype(np.float32), norms, counted, sink.astype(np.float32), int(of_sinks.sum()))


def _padded(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    chosen: Sequence[np.ndarray],
    budget: int | None,
    progress: bool | None,
) -> Iterator[tuple[Int[np.ndarray, " b"], tuple[Array, Array, Array]]]:
    """Batches of rows of one length: their numbers, and ids, which tokens are real, and how much they count, ``[b, T]``."""
    # What comes after the last token that counts has no say in the states of those before.
    needed = [int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 1 for mask in chosen]
    length, n = max(needed), len(rows)
    ids, real, counts = np.zeros((n, length), np.int32), np.zeros((n, length), bool), np.zeros((n, length), np.float32)
    for k, (row, mask, t) in enumerate(zip(rows, chosen, needed, strict=True)):
        ids[k, :t], real[k, :t], counts[k, :t] = row[:t], True, mask[:t]
    more = lm.config.num_layers * length * lm.config.d_model
    with bar(total=n, desc="states", unit="text", shown=progress) as done:
        for batch in lm.batches(n, length, more=more, budget=budget):
            tokens, are_real, count = lm.on_devices(ids[batch], real[batch], counts[batch])
            yield batch, (tokens, are_real, count)
            done.update(len(np.unique(batch)))


def _require_content(names: Sequence[str], counted: Sequence[int] | Int[np.ndarray, " n"]) -> None:
    for name, count in zip(names, counted, strict=True):
        require(count > 0, name, "a token beside the first and other attention sinks", "none")


def every_token(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """All tokens of every row count."""
    return [np.ones(len(row), bool) for row in rows]


def content(row: Row, weights: Float[np.ndarray, " k"]) -> Float[np.ndarray, " t"]:
    """How much the tokens of a row count as content: those of its text by their place, and never the first of the row.

    The state of the first token does not depend on the text: attention goes to it that goes nowhere else.
    """
    counts, end = np.zeros(len(row.ids)), min(row.start + len(weights), row.end)
    counts[row.start : end] = weights[: end - row.start]
    counts[0] = 0
    return counts


def place_weights(lengths: Sequence[Sequence[int]]) -> Float[np.ndarray, " k"]:
    """How much the first, second, ... token of a text counts, from the lengths of the texts of each set.

    As far as all texts reach, 1; beyond, less the fewer reach so far in the set where they are fewest, and 0 from where only
    `REACH` of them do. Late tokens are those of long texts alone: with equal weights, sets of other lengths would differ by
    which texts are still there.
    """
    place = np.arange(max(max(of_set) for of_set in lengths))
    reaching = np.min([np.mean(np.asarray(of_set)[:, None] > place, axis=0) for of_set in lengths], axis=0)
    return np.trim_zeros(np.maximum(reaching - REACH, 0) / (1 - REACH), "b")


def _means(
    decoder: Decoder,
    tokens: Int[Array, "n T"],
    real: Bool[Array, "n T"],
    counts: Float[Array, "n T"],
    *,
    leave_out: bool,
) -> tuple[Array, ...]:
    """Of every text: weighted mean state, sum of the states of its sinks and their number, tokens averaged, median norm."""
    x = wide(all_states(decoder, tokens, real))
    norms = jnp.linalg.norm(x, axis=-1)
    sinks = _sinks(norms, real)
    weights = jnp.where(sinks & leave_out, 0, counts).astype(x.dtype)
    kept = weights > 0

    def total(of_tokens: Float[Array, "n T"]) -> Float[Array, "L n d"]:
        # A state that does not count may be anything, as that of padding.
        known = jnp.where((of_tokens > 0)[..., None], x, 0)
        return jnp.einsum("lntd,nt->lnd", known, of_tokens, precision=of_products(x.dtype))

    means = total(weights) / jnp.where(kept.any(axis=1), weights.sum(axis=1), 1)[:, None]
    inside = jnp.nanmedian(jnp.where(kept, norms, jnp.nan), axis=-1)
    return means, total(sinks.astype(x.dtype)), sinks.sum(axis=1), kept.sum(axis=1), inside


_compiled_means: Any = jax.jit(_means, static_argnames="leave_out")


def _content(
    decoder: Decoder, tokens: Int[Array, "n T"], real: Bool[Array, "n T"], counts: Float[Array, "n T"], layer: Int[Array, ""]
) -> tuple[Float[Array, "n T d"], Bool[Array, "n T"]]:
    """The states of all tokens after a block, and which of them count and are no attention sinks."""
    x = wide(all_states(decoder, tokens, real))
    return x[layer], (counts > 0) & ~_sinks(jnp.linalg.norm(x, axis=-1), real)


_compiled_content: Any = jax.jit(_content)


def _sinks(norms: Float[Array, "L n T"], real: Bool[Array, "n T"]) -> Bool[Array, "n T"]:
    """Which tokens are attention sinks, from the norms of their states."""
    median = jnp.nanmedian(jnp.where(real, norms, jnp.nan), axis=-1, keepdims=True)
    return real & ((norms > SINK * median).any(axis=0) | (jnp.arange(real.shape[1]) == 0))
