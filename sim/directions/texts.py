"""Paired texts that show a concept and do not: the project's own for eight concepts, and readers of other people's files.

A steering vector is made from the difference between two sets of texts. If the texts come in pairs that differ in the
concept and in little else, so does the vector. The pairs of the library are matched in length, so that no vector of it
points from short texts to long ones.

What a file holds is told by what is in it, not by its name:

=================================  ==================================================================================
fields of each entry               what it is
=================================  ==================================================================================
matching, not_matching             the project's own, with a "question"
positive, negative                 contrastive texts, with a "question" or "prompt" or without
chosen, rejected                   preference data, with a "question" or "prompt" or without
answer_matching_behavior,          questions of CAA (arXiv:2312.06681) and of the evaluations that it starts from
answer_not_matching_behavior       (arXiv:2212.09251); answers are letters of options, or words
input, output, output_concept,     records of AxBench (arXiv:2501.17148)
category
=================================  ==================================================================================
"""

import importlib.resources
import json
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from sim.bridge.files import reading, require_file
from ufm._check import require, shown, text, typed

CONCEPTS = ("apathetic", "depression", "evil", "humorous", "impolite", "joy", "lying", "optimistic")
"""The concepts of the library: those of S (arXiv:2602.02712)."""

UTF_8 = "utf-8-sig"
"""UTF-8, with the mark at the beginning that some programs write, or without."""

CAA = ("answer_matching_behavior", "answer_not_matching_behavior")
SIDES = (("matching", "not_matching"), ("positive", "negative"), ("chosen", "rejected"), CAA)
"""What the two answers of a pair are called in the files that hold pairs."""
QUESTIONS = ("question", "prompt")
RECORD = ("input", "output", "output_concept", "category")
FIELDS = {*QUESTIONS, *RECORD, "concept_genre", "concept_id", *(name for names in SIDES for name in names)}
"""All fields that are read: of a parquet file, the other columns are left alone."""

CAA_FILES = ("dataset", "generate_dataset", "test_dataset_ab")
"""What CAA's files are called, whatever their behaviour, which is the name of the folder."""

CATEGORIES = ("positive", "negative", "hard negative")
SHARED = "EEEEE"
"""What AxBench names as the concept of negatives that all concepts of a genre share."""

OPTION, LETTER = re.compile(r"\(([A-Za-z])\)"), re.compile(r"[A-Z]")
"""Answers that are the letter of an option: in brackets always, alone if both are and the question has one in brackets."""


class Pair(NamedTuple):
    """A question with an answer that shows a concept and one that does not.

    Attributes:
        question: what is asked; empty if the two answers have no question in common.
        matching: the answer that shows the concept.
        not_matching: the answer that does not.
    """

    question: str
    matching: str
    not_matching: str


@typed
def concept_pairs(name: str) -> tuple[Pair, ...]:
    """The library's sixty pairs for a concept, written for this project, the two answers matched in length.

    Args:
        name: one of `CONCEPTS`.

    Raises:
        ValueError: another name.
    """
    require(name in CONCEPTS, "name", f"one of {', '.join(CONCEPTS)}", shown(name))
    with importlib.resources.as_file(importlib.resources.files("sim") / "data" / "pairs" / f"{name}.jsonl") as path:
        return read_pairs(path)[name]


@typed
def read_pairs(path: str | Path) -> dict[str, tuple[Pair, ...]]:
    """Pairs by concept, of a JSON-lines, JSON or parquet file, or of all such files in a folder.

    Records of AxBench name their concepts. Other files hold one concept, which is named after the file, or after the folder
    if the file has one of the names that CAA's files have. A concept of AxBench is contrasted with its own negatives, or
    with those that its genre shares. If all its positives have a negative with the same input, that input is the question.
    Otherwise there is no question: the k-th positive is paired with the k-th negative, and each text holds its input and its
    output. Hard negatives, which show another sense of a word, are on neither side.

    Args:
        path: the file or the folder.

    Raises:
        ValueError: nothing there, nothing in it, an entry of another form, an answer that is empty or that both sides have,
            an option that the question does not name, records that are not paired; the message names the file and the line,
            or the number of the entry, from 0 on.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS) if path.is_dir() else [path]
    wanted = "a JSON-lines, JSON or parquet file, or a folder of such"
    require(len(files) > 0, "pairs", wanted, f"the folder {str(path)!r} without one")
    pairs: dict[str, tuple[Pair, ...]] = {}
    for file in files:
        for concept, of_concept in _of_file(file).items():
            require(concept not in pairs, "pairs", "each concept in one file", f"{concept!r} again in {file.name}")
            pairs[concept] = of_concept
    return pairs


ENDINGS = (".jsonl", ".json", ".parquet")
"""Of the files of a folder that are read. A file by itself may be called anything."""


def sides_of(pairs: Any) -> tuple[list[str], list[str], list[str] | None]:
    """The texts that show a concept, those that do not, and the questions that they answer; None if they answer none.

    Raises:
        ValueError: no pairs, something else among them, questions in some of them only.
    """
    require(hasattr(pairs, "__iter__") and not isinstance(pairs, str | dict), "pairs", "a list of pairs", shown(pairs))
    listed = list(pairs)
    require(len(listed) > 0, "pairs", "at least one", "none")
    wrong = next((value for value in listed if not isinstance(value, Pair)), None)
    require(wrong is None, "pairs", "a list of Pair(question, matching, not_matching)", shown(wrong))
    for k, pair in enumerate(listed):
        for value in pair:
            require(isinstance(value, str), "pairs", "texts", f"{shown(value)} in pair {k}")
    asked = [bool(pair.question) for pair in listed]
    number = f"{sum(asked)} of {len(asked)}"
    require(all(asked) or not any(asked), "pairs", "a question in every pair, or in none", f"one in {number}")
    questions = [pair.question for pair in listed] if all(asked) else None
    return [pair.matching for pair in listed], [pair.not_matching for pair in listed], questions


def json_lines(path: Path, argument: str) -> Iterator[tuple[str, Any]]:
    """What the lines of a JSON-lines file hold, each with a text that names the line.

    Args:
        path: the file.
        argument: what messages call it.

    Raises:
        ValueError: no such file, not UTF-8, a line that is no JSON.
    """
    require_file(argument, path, "a JSON-lines file")
    with reading(path, "a text file in UTF-8", argument=argument):
        lines = lines_of(path)
    for k, line in enumerate(lines, 1):
        if line.strip():
            where = f"line {k} of {path.name}"
            yield where, _parsed(line, argument, where)


def lines_of(path: Path) -> list[str]:
    """The lines of a file. `str.splitlines` would also cut at separators that may stand inside a text, such as U+2028."""
    return path.read_text(encoding=UTF_8).split("\n")


# --- what a file holds -----------------------------------------------------------------------------------------------


def _of_file(path: Path) -> dict[str, tuple[Pair, ...]]:
    entries = _entries(path)
    require(len(entries) > 0, "pairs", "at least one pair", f"none in {str(path)!r}")
    where, first = entries[0]
    fields = set(first) if isinstance(first, dict) else set()
    if fields.issuperset(RECORD):
        return _of_records(entries, path.name)
    sides = next((names for names in SIDES if fields.intersection(names)), None)
    require(sides is not None, "pairs", _known_fields(), f"{shown(first)} in {where}")
    assert sides is not None
    named_by_folder = sides == CAA and path.stem in CAA_FILES
    concept = path.resolve().parent.name if named_by_folder else path.stem
    return {concept: tuple(_pair(row, sides, where) for where, row in entries)}


def _known_fields() -> str:
    return f"an object with {', '.join(f'{a!r} and {b!r}' for a, b in SIDES)}, or with {', '.join(map(repr, RECORD))}"


def _entries(path: Path) -> list[tuple[str, Any]]:
    """The entries of a file, each with a text that says where it is."""
    require_file("pairs", path, "a JSON-lines, JSON or parquet file")
    with reading(path, "a file that can be read", argument="pairs"), path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        return _of_parquet(path)
    with reading(path, "a text file in UTF-8, or a parquet file", argument="pairs"):
        whole = path.read_text(encoding=UTF_8)
    if not whole.lstrip().startswith("["):
        return list(json_lines(path, "pairs"))
    return [(f"entry {k} of {path.name}", row) for k, row in enumerate(_parsed(whole, "pairs", path.name))]


def _parsed(written: str, argument: str, where: str) -> Any:
    try:
        return json.loads(written)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} of " if "\n" in written.strip() else ""
        raise ValueError(f"{argument}: expected JSON, got {error.msg} in {line}{where}") from error
    except RecursionError as error:
        raise ValueError(f"{argument}: expected JSON, got brackets nested too deep in {where}") from error
    except ValueError as error:  # of Python: a whole number of more digits than it reads
        raise ValueError(f"{argument}: expected JSON, got a number of too many digits in {where}") from error


def _of_parquet(path: Path) -> list[tuple[str, Any]]:
    import pyarrow.parquet

    with reading(path, "a parquet file", argument="pairs"):
        columns = pyarrow.parquet.read_schema(path).names
        known = [name for name in columns if name in FIELDS]
        rows = pyarrow.parquet.read_table(path, columns=known).to_pylist() if known else []
    require(len(known) > 0, "pairs", _known_fields(), f"columns {', '.join(columns)} in {path.name}")
    return [(f"row {k} of {path.name}", row) for k, row in enumerate(rows)]


# --- pairs -----------------------------------------------------------------------------------------------------------


def _pair(row: Any, sides: tuple[str, str], where: str) -> Pair:
    matching, not_matching = (_field(row, name, where) for name in sides)
    asked = next((name for name in QUESTIONS if row.get(name) is not None), None)
    question = "" if asked is None else row[asked]
    require(isinstance(question, str), "pairs", f'text as "{asked}"', f"{shown(question)} in {where}")
    pair = _differing(Pair(_text(question, where).strip(), matching, not_matching), where)
    if sides == CAA:
        _require_options(pair, where)
    return pair


def _field(row: Any, name: str, where: str) -> str:
    """A text of an entry, without the spaces around it."""
    value = row.get(name) if isinstance(row, dict) else None
    fits = isinstance(value, str) and bool(value.strip())
    require(fits, "pairs", f'an object with "{name}" that is text and not empty', f"{shown(row)} in {where}")
    return _text(value, where).strip()


def _text(value: Any, where: str) -> str:
    """Text that can be encoded: JSON can write half of a character."""
    try:
        return text("pairs", value)
    except ValueError as error:
        raise ValueError(f"{error} in {where}") from error


def _differing(pair: Pair, where: str) -> Pair:
    differ = pair.matching != pair.not_matching
    require(differ, "pairs", "two answers that differ", f"{shown(pair.matching)} twice in {where}")
    return pair


def _require_options(pair: Pair, where: str) -> None:
    """Refuse letters of options that the question does not have."""
    answers = pair[1:]
    bracketed = any(OPTION.fullmatch(answer) for answer in answers)
    alone = all(LETTER.fullmatch(answer) for answer in answers) and OPTION.search(pair.question) is not None
    if not bracketed and not alone:
        return
    for answer in answers:
        named = (f"({answer})" if alone else answer) in pair.question and (alone or OPTION.fullmatch(answer) is not None)
        require(named, "pairs", "an answer that is an option of the question", f"{shown(answer)} in {where}")


# --- records of AxBench ----------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """A record of AxBench: a text that shows a concept, or does not."""

    where: str
    prompt: str
    answer: str
    concept: tuple[Any, str]
    genre: Any
    category: str


def _record(row: Any, where: str) -> _Record:
    prompt, answer, concept, category = (_field(row, name, where) for name in RECORD)
    require(category in CATEGORIES, "pairs", f"a category among {', '.join(CATEGORIES)}", f"{category!r} in {where}")
    number, genre = (_label(row, name, where) for name in ("concept_id", "concept_genre"))
    return _Record(where, prompt, answer, (number, concept), genre, category)


def _label(row: Any, name: str, where: str) -> str | int | float | None:
    """What records are told apart by: a text or a number, or nothing."""
    value = row.get(name)
    fits = value is None or isinstance(value, str | int | float)
    require(fits, "pairs", f'a text or a number as "{name}"', f"{shown(value)} in {where}")
    return value


def _of_records(entries: list[tuple[str, Any]], file: str) -> dict[str, tuple[Pair, ...]]:
    records = [_record(row, where) for where, row in entries]
    positives: dict[tuple[Any, str], list[_Record]] = {}
    negatives: dict[tuple[Any, str], list[_Record]] = {}
    for record in records:
        if record.category != "hard negative":
            side = positives if record.category == "positive" else negatives
            side.setdefault(record.concept, []).append(record)
    require(len(positives) > 0, "pairs", "at least one record that is positive", f"none in {file}")
    shared = [record for (_, concept), of_concept in negatives.items() if concept == SHARED for record in of_concept]
    pairs: dict[str, tuple[Pair, ...]] = {}
    for key, shown_in in positives.items():
        genres = {record.genre for record in shown_in}
        others = negatives.get(key) or [record for record in shared if record.genre in genres]
        # Features of different numbers may have the same description.
        name = key[1] if key[1] not in pairs else f"{key[1]} ({key[0]})"
        pairs[name] = _contrasted(name, shown_in, others, file)
    return pairs


def _by_prompt(records: list[_Record]) -> dict[str, list[_Record]]:
    grouped: dict[str, list[_Record]] = {}
    for record in records:
        grouped.setdefault(record.prompt, []).append(record)
    return grouped


def _contrasted(name: str, positives: list[_Record], negatives: list[_Record], file: str) -> tuple[Pair, ...]:
    require(len(negatives) > 0, "pairs", f"negatives of {shown(name)}, or of its genre", f"none in {file}")
    shown_in, answers = _by_prompt(positives), _by_prompt(negatives)
    if all(prompt in answers for prompt in shown_in):
        for prompt, records in shown_in.items():
            several, count = len(answers[prompt]), len(records)
            expected = f"one negative for an input of {shown(name)}, or one for each of its positives"
            got = f"{several} for {count} in {records[0].where}"
            require(several in (1, count), "pairs", expected, got)
        # One negative serves all positives of its input; else the k-th is for the k-th.
        own = {prompt: cycle(records) for prompt, records in answers.items()}
        return tuple(_differing(Pair(p.prompt, p.answer, next(own[p.prompt]).answer), p.where) for p in positives)
    counts = f"{len(positives)} and {len(negatives)} in {file}"
    wanted = f"as many negatives as positives of {shown(name)}, whose inputs differ"
    require(len(positives) == len(negatives), "pairs", wanted, counts)
    return tuple(
        _differing(Pair("", f"{p.prompt}\n{p.answer}", f"{n.prompt}\n{n.answer}"), p.where)
        for p, n in zip(positives, negatives, strict=True)
    )
