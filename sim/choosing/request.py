"""What `ufm choose` is asked for: a vector and prompts as a user names them; and the answer as a vector file."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.bridge.files import text_lines
from sim.bridge.model import LanguageModel
from sim.choosing.choice import Choice
from sim.choosing.criteria import Ceiling, KLBudget, LossRise, NormRatio, Rising, floor_of
from sim.choosing.mix import Mix
from sim.directions.extraction import make_vector
from sim.directions.files import is_bare, read_vector
from sim.directions.opinions import WAYS, Shows, right_on_pairs
from sim.directions.prompt_texts import DEFINITIONS
from sim.directions.texts import CONCEPTS, concept_pairs, json_lines
from sim.directions.vector import SteeringVector
from ufm._check import require, text


def check_source(vector: Path | None, concepts: Sequence[str] | None) -> None:
    """Refuse what a vector cannot come from, before a model is loaded.

    Args:
        vector: the file.
        concepts: names.

    Raises:
        ValueError: both or neither; a missing file or an unknown concept.
    """
    asked = "both" if concepts else "neither"
    require((vector is None) == bool(concepts), "vector", "a file, or a concept in its place", asked)
    if vector is not None:
        require(vector.is_file(), "vector", "a file", f"none at {str(vector)!r}")
    unknown = [name for name in concepts or () if name not in CONCEPTS]
    library = f"some of {', '.join(CONCEPTS)} (for one of your own, ufm vector make --pairs FILE, and --vector)"
    require(not unknown, "concept", library, ", ".join(map(repr, unknown)))


def vectors_for(
    lm: LanguageModel,
    vector: Path | None,
    concepts: Sequence[str] | None,
    *,
    layer: int | None = None,
    other_weights: bool = False,
) -> list[SteeringVector]:
    """The vector of a file, or those made from the pairs of concepts of the library.

    Args:
        lm: the model.
        vector: the file.
        concepts: names.
        layer: the block of a single direction, in a file that does not say it.
        other_weights: whether a vector for the same model with other weights will do.

    Raises:
        ValueError: both or neither; a missing file or an unknown concept.
    """
    check_source(vector, concepts)
    if vector is not None:
        return [read_vector(vector, lm, other_weights=other_weights, layer=layer if is_bare(vector) else None)]
    pairs = {name: concept_pairs(name) for name in concepts or ()}
    return [make_vector(lm, pairs=texts, name=name, progress=None) for name, texts in pairs.items()]


def prompts_of(prompt: Sequence[str] | None, prompts: Path | None) -> list[str]:
    """Prompts that are given one by one, or in a file: one in each line, as text or as JSON, or a list in JSON.

    Raises:
        ValueError: both or neither; a file without any; a line or an entry of JSON without a prompt.
    """
    require(bool(prompt) != (prompts is not None), "prompt", "some, or a file of them", "both" if prompt else "neither")
    if prompts is None:
        return list(prompt or ())
    lines = text_lines("prompts", prompts, "a file with a prompt in each line")
    listed = _as_list("\n".join(lines))
    if listed is not None:
        require(len(listed) > 0, "prompts", "at least one", f"an empty list in {prompts.name}")
        return [_prompt_of(f"entry {k} of {prompts.name}", row) for k, row in enumerate(listed)]
    if prompts.suffix == ".jsonl" or all(re.match(r'\{\s*"', line) for line in lines):
        return [_prompt_of(where, row) for where, row in json_lines(prompts, "prompts")]
    expected = "a list in JSON, whole, or a line of JSON for each prompt"
    require(prompts.suffix.lower() != ".json", "prompts", expected, f"something else in {prompts.name}")
    return lines


def _as_list(written: str) -> list[Any] | None:
    """The list that a text is in JSON; None if it is something else."""
    try:
        value = json.loads(written) if written.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _prompt_of(where: str, row: Any) -> str:
    """The prompt in a line or an entry of a file of JSON: a text, or an object with one under `PROMPT`."""
    prompt = next((row[name] for name in PROMPT if name in row), None) if isinstance(row, dict) else row
    known = isinstance(prompt, str) and bool(prompt.strip())
    require(known, "prompts", f"a text, or an object with a text as {' or '.join(map(repr, PROMPT))}", f"{row!r} in {where}")
    try:
        return text("prompts", prompt)
    except ValueError as error:
        raise ValueError(f"{error} in {where}") from error


PROMPT = ("prompt", "text")
"""Where an object of a JSON-lines file has a prompt."""


def check_numbers(budget: float | None, statistic: str, share: float | None, *, falls: bool = False) -> None:
    """Refuse a budget, a statistic or a share that cannot be asked for, before a model is loaded.

    Args:
        budget, statistic, share: as for `sim.choose`.
        falls: whether tokens are named whose share is to fall.

    Raises:
        ValueError: a budget that is not positive, an unknown statistic, a share that is not between 0 and 1, or one to be
            reached by tokens whose share is to fall.
    """
    KLBudget(1.0 if budget is None else budget, statistic)
    floor_of(share, falls=falls)


def check_judge(by: str, judge: str | None, about: str | None, concepts: Sequence[str] | None, share: float | None) -> None:
    """Refuse who is to say whether texts show a concept, before a model is loaded.

    Args:
        by: "tokens", or one of `sim.directions.opinions.WAYS`.
        judge: the name of a model, if it is another one.
        about: the name of the concept.
        concepts: those that the vector is made for, the first of which is meant without `about`.
        share: what is to be reached.

    Raises:
        ValueError: another way; no concept, or one whose opposite is not known; a judge of tokens; no share.
    """
    require(by in ("tokens", *WAYS), "by", f"tokens, {' or '.join(WAYS)}", repr(by))
    if by == "tokens":
        require(judge is None and about is None, "by", f"{' or '.join(WAYS)}, for --judge and --about", "tokens")
        return
    require(share is not None, "share", f"the part of the texts that is to show the concept, for --by {by}", "none")
    name = _concept_of(about, concepts)
    require(bool(name), "about", f"the concept's name, for --by {by}", "none")
    known = by == "judge" or name in DEFINITIONS
    require(
        known, "about", f"one of {', '.join(DEFINITIONS)}, for --by ratio (a judge may be asked about others)", repr(name)
    )


def shows_of(judge: LanguageModel, by: str, about: str | None, concepts: Sequence[str] | None) -> Shows | None:
    """Who says whether texts show the concept; None where a share is one of tokens. Arguments as for `check_judge`."""
    return None if by == "tokens" else Shows(judge, _concept_of(about, concepts), by)


def trust_in(shows: Shows) -> str:
    """How far an opinion on texts can be trusted, as a line: tried on pairs of the library, if it has some."""
    said = f"texts show {shows.name}"
    if shows.concept not in CONCEPTS:
        return f"{said}, which was not tried on texts that are known to show it"
    pairs = concept_pairs(shows.concept)[:TRIED_ON]
    right = right_on_pairs(shows, pairs)
    advice = "" if right >= TRUSTED else ": do not rely on it"
    return f"{said}, which is right on {right:.0%} of {len(pairs)} pairs of the library{advice}"


TRIED_ON, TRUSTED = 20, 0.75
"""Pairs of the library that an opinion on texts is tried on, and the part of them on which it should be right."""


def _concept_of(about: str | None, concepts: Sequence[str] | None) -> str:
    return about or (concepts[0] if concepts else "")


def limits(loss_rise: float | None, norm_ratio: float | None, *, rising: bool) -> list[Ceiling]:
    """The limits that are named beside the budget.

    Args:
        loss_rise: of `LossRise`.
        norm_ratio: of `NormRatio`.
        rising: whether `Rising` is one of them.

    Raises:
        ValueError: one that is not positive.
    """
    named: list[Ceiling] = [] if loss_rise is None else [LossRise(loss_rise)]
    named += [] if norm_ratio is None else [NormRatio(norm_ratio)]
    return [*named, Rising()] if rising else named


def layer_of(text: str) -> int:
    """A block by number.

    Raises:
        ValueError: something else.
    """
    require(text.isdecimal(), "layer", "a block by number, or auto", repr(text))
    return int(text)


def block_of(lm: LanguageModel, place: int | str) -> int | None:
    """The block that was named, None for "auto".

    Raises:
        ValueError: one that the model does not have.
    """
    if isinstance(place, str):
        return None
    last = lm.config.num_layers - 1
    require(0 <= place <= last, "layer", f"a block from 0 to {last}, or auto", place)
    return place


def tokens_of(lm: LanguageModel, words: Sequence[str] | None) -> list[int] | None:
    """The tokens of words, each with a space before it; None where no words are given.

    Raises:
        ValueError: a model without a tokenizer; a blank word; one of several tokens, since its first is another word's, too.
    """
    if not words:
        return None
    blank = [word for word in words if not word.strip()]
    require(not blank, "tokens", "words", f"a blank one, {blank[0]!r}" if blank else "")
    require(lm.tokenizer is not None, "tokens", "none, for a model without a tokenizer", ", ".join(words))
    assert lm.tokenizer is not None
    try:
        return list(dict.fromkeys(lm.tokenizer.token(f" {word.strip()}") for word in words))
    except ValueError as error:
        raise ValueError(f"tokens: {str(error).removeprefix('word: ')}") from None


def with_promoted_tokens(choice: Choice) -> Choice:
    """A choice, and those beside it, that says its tokens are those that steering promotes: they were not named by a user.

    Args:
        choice: for a mix, whose tokens are found before it is made.
    """
    return _with_settings(choice, lambda _: {"tokens": "promoted"})


def with_mix(choice: Choice, mixed: Mix, names: Sequence[str]) -> Choice:
    """A choice for a mix, and those beside it, that says how much of each vector the mix holds after its block.

    Args:
        choice: for the mix.
        mixed: the mix.
        names: of the vectors, in order.
    """
    return _with_settings(choice, lambda at: {"mix": dict(zip(names, map(float, mixed.weights[at.layer]), strict=True))})


def _with_settings(choice: Choice, more: Callable[[Choice], dict[str, Any]]) -> Choice:
    """A choice, and those beside it, with more among the settings of each."""
    others = tuple(_with_settings(other, more) for other in choice.others)
    return replace(choice, settings=choice.settings | more(choice), others=others)


def folded(vector: SteeringVector, choice: Choice) -> SteeringVector:
    """The direction that was chosen for, times the strength: at strength 1 it does what was chosen.

    Args:
        vector: what was chosen for.
        choice: with a strength.

    Raises:
        ValueError: a choice without one.
    """
    require(choice.alpha is not None, "choice", "one with a strength", choice.reason)
    assert choice.alpha is not None
    return vector.at(choice.layer) * choice.alpha
