"""The inputs of the experiments: prompts, contexts, text and questions, from the user's files or the project's own."""

import csv
import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sim.bridge.files import reading, require_file
from sim.checks.concept_texts import OPENINGS
from sim.directions.prompt_texts import CONTEXTS, STARTS
from sim.directions.texts import CONCEPTS, UTF_8, Pair, concept_pairs, json_lines, lines_of, read_pairs
from sim.experiments import corpora
from ufm._check import require

LETTERS = "ABCD"


class Question(NamedTuple):
    """A question with four answers, of which one is right.

    Attributes:
        text: what is asked.
        choices: the answers.
        answer: the number of the right one.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Inputs:
    """The texts of a run.

    Attributes:
        contexts: whose next token is looked at.
        starts: what completions start from.
        documents: text that the model has not written, for cross-entropy.
        questions: with four answers each; the first are worked examples.
        prompts: texts by set; None to have the model write them.
        pairs: paired answers by concept.
    """

    contexts: tuple[str, ...]
    starts: tuple[str, ...]
    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    prompts: Mapping[str, tuple[str, ...]] | None = None
    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, str]:
        """The number of texts of each kind, and a hash of them."""
        parts: dict[str, Any] = {
            "contexts": self.contexts,
            "starts": self.starts,
            "text": self.documents,
            "questions": self.questions,
        }
        parts |= {f"pairs.{name}": pairs for name, pairs in sorted(self.pairs.items())}
        every: dict[str, Any] = parts | ({} if self.prompts is None else {"prompts": dict(sorted(self.prompts.items()))})
        return {name: f"{len(part)}, {_hash(part)}" for name, part in every.items()}


def read_inputs(
    *,
    contexts: Path | None = None,
    starts: Path | None = None,
    text: Path | None = None,
    questions: Path | None = None,
    prompts: Path | None = None,
    pairs: Path | None = None,
) -> Inputs:
    """The texts of a run, from the user's files, and from the project's own where no file is given.

    Args:
        contexts, starts: text files, one in each line.
        text: a text file (documents parted by two blank lines) or a parquet file with a column "text".
        questions: a CSV, JSON-lines or parquet file in MMLU's format.
        prompts: a JSON-lines file of ``{"set": ..., "text": ...}``: the set is a concept, "not " and a concept, or "random".
        pairs: a file of ``{"question": ..., "matching": ..., "not_matching": ...}`` that is named after its concept, or of
            another form that `sim.read_pairs` knows, or a folder of such files.

    Raises:
        ValueError: a file is missing, empty or malformed; the message names the file and, where possible, the line.
    """
    return Inputs(
        (*OPENINGS, *CONTEXTS) if contexts is None else tuple(read_lines(contexts, "contexts")),
        STARTS if starts is None else tuple(read_lines(starts, "starts")),
        tuple(corpora.manual() if text is None else corpora.read_documents(text)),
        own_questions() if questions is None else tuple(read_questions(questions)),
        None if prompts is None else read_prompts(prompts),
        own_pairs() if pairs is None else read_questioned_pairs(pairs),
    )


def read_lines(path: Path, argument: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ValueError: no such file, nothing in it, not UTF-8.
    """
    require_file(argument, path, "a text file")
    with reading(path, "a text file in UTF-8", argument=argument):
        lines = [line.strip() for line in lines_of(path) if line.strip()]
    require(len(lines) > 0, argument, "at least one line", f"none in {str(path)!r}")
    return lines


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Texts by set.

    Raises:
        ValueError: no such file, nothing in it, a malformed line.
    """
    texts_by_set: dict[str, list[str]] = {}
    for where, row in json_lines(path, "prompts"):
        fits = isinstance(row, dict) and all(
            isinstance(row.get(name), str) and row[name].strip() for name in ("set", "text")
        )
        require(fits, "prompts", 'an object with "set" and "text", not empty', f"{_short(row)} in {where}")
        texts_by_set.setdefault(row["set"], []).append(row["text"])
    require(len(texts_by_set) > 0, "prompts", "at least one line", f"none in {str(path)!r}")
    return {name: tuple(texts) for name, texts in texts_by_set.items()}


def own_pairs() -> dict[str, tuple[Pair, ...]]:
    """Pairs written for this project, by concept."""
    return {name: concept_pairs(name) for name in CONCEPTS}


def read_questioned_pairs(path: Path) -> dict[str, tuple[Pair, ...]]:
    """Pairs of the user's by concept, each with a question that its answers are answers to.

    Raises:
        ValueError: what `read_pairs` refuses, or a pair without a question.
    """
    by_concept = read_pairs(path)
    for concept, pairs in by_concept.items():
        missing = next((k for k, pair in enumerate(pairs) if not pair.question), None)
        require(missing is None, "pairs", "a question in each pair", f"none in pair {missing} of {concept!r} in {path.name}")
    return by_concept


def own_questions() -> tuple[Question, ...]:
    """Questions written for this project, of school level: not MMLU, and easier."""
    with importlib.resources.as_file(importlib.resources.files("sim") / "data" / "questions.csv") as path:
        return tuple(read_questions(path))


def read_questions(path: Path) -> list[Question]:
    """Questions of a CSV file (question, four answers, letter), a JSON-lines or a parquet file (question, choices, answer).

    Raises:
        ValueError: no such file, another type, nothing in it, a malformed row.
    """
    require_file("questions", path, "a CSV, JSON-lines or parquet file")
    kinds = {".csv": _of_csv, ".jsonl": _of_json_lines, ".parquet": _of_parquet}
    require(path.suffix in kinds, "questions", f"a file whose name ends with {', '.join(kinds)}", repr(str(path)))
    questions = [_question(row, where) for where, row in kinds[path.suffix](path)]
    require(len(questions) > 0, "questions", "at least one question", f"none in {str(path)!r}")
    return questions


def _of_csv(path: Path) -> Iterator[tuple[str, Any]]:
    with reading(path, "a CSV file in UTF-8", argument="questions"), path.open(encoding=UTF_8, newline="") as file:
        reader = csv.reader(file, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    for line, row in rows:
        where = f"line {line} of {path.name}"
        require(len(row) == 6, "questions", "a question, four answers and a letter", f"{len(row)} columns in {where}")
        yield where, {"question": row[0], "choices": row[1:5], "answer": row[5].strip()}


def _of_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    return json_lines(path, "questions")


def _of_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    names = ["question", "choices", "answer"]
    with reading(path, "a parquet file", argument="questions"):
        columns = pyarrow.parquet.read_schema(path).names
        missing = [name for name in names if name not in columns]
        rows = [] if missing else pyarrow.parquet.read_table(path, columns=names).to_pylist()
    require(not missing, "questions", f"columns {', '.join(names)}", f"none of {', '.join(missing)} in {path.name}")
    for k, row in enumerate(rows):
        yield f"row {k} of {path.name}", row


def _question(row: Any, where: str) -> Question:
    text, choices, answer = (row.get(name) if isinstance(row, dict) else None for name in ("question", "choices", "answer"))
    require(isinstance(text, str) and bool(text.strip()), "questions", "a question", f"{_short(text)} in {where}")
    fits = isinstance(choices, list) and len(choices) == 4 and all(isinstance(choice, str) and choice for choice in choices)
    require(fits, "questions", "four answers that are not empty", f"{_short(choices)} in {where}")
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        answer = LETTERS.index(answer)
    known = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < 4
    require(known, "questions", "an answer A to D or 0 to 3", f"{answer!r} in {where}")
    assert isinstance(text, str)
    assert isinstance(choices, list)
    assert isinstance(answer, int)
    return Question(text.strip(), tuple(choices), answer)


def _hash(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, ensure_ascii=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
