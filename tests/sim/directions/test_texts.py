"""The library of concepts: counts, lengths, no text twice; and readers of pairs, of every form, and of what is none."""

import json
import re
from itertools import chain

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sim.bridge import fetch
from sim.bridge.tokenizer import from_gguf
from sim.bridge.weights.gguf_file import Gguf
from sim.directions.prompt_texts import DEFINITIONS
from sim.directions.texts import CONCEPTS, Pair, concept_pairs, read_pairs

OLDER = ("impolite", "optimistic")
"""Texts that the figures of `docs/why-steering-works.md` are measured on. Matched less closely than the others."""

MEASURES = {"words": lambda answer: len(answer.split()), "characters": len}


def lengths(pairs, measure):
    """The lengths of the answers, ``[pairs, 2]``."""
    return np.asarray([[measure(pair.matching), measure(pair.not_matching)] for pair in pairs])


def gap(pairs, measure):
    """The mean of the matching answers over that of the others, less 1."""
    matching, not_matching = lengths(pairs, measure).mean(axis=0)
    return abs(matching / not_matching - 1)


def area(pairs, measure):
    """The area under the curve of a classifier that knows the length alone: 1/2 is chance."""
    matching, not_matching = lengths(pairs, measure).T
    difference = np.subtract.outer(matching, not_matching)
    return np.mean((difference > 0) + (difference == 0) / 2)


# --- the library -------------------------------------------------------------------------------------------------------


def test_the_library_has_the_concepts_of_the_paper():
    assert set(CONCEPTS) == set(DEFINITIONS)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_pairs_of_a_concept(concept):
    pairs = concept_pairs(concept)
    assert len(pairs) == 60  # of which a training of updates takes 40 and holds out 20
    words = lengths(pairs, MEASURES["words"])
    assert words.min() >= 8
    assert words.max() <= 25
    assert all(pair.question.endswith(("?", ".", "!")) for pair in pairs)
    assert gap(pairs, MEASURES["words"]) < 0.01
    assert gap(pairs, MEASURES["characters"]) < (0.03 if concept in OLDER else 0.01)


@pytest.mark.parametrize("concept", [concept for concept in CONCEPTS if concept not in OLDER])
def test_the_answers_of_a_pair_are_as_long_as_each_other(concept):
    pairs = concept_pairs(concept)
    words, characters = (lengths(pairs, measure) for measure in MEASURES.values())
    assert (abs(words[:, 0] - words[:, 1]) <= 1).all()
    assert (characters.max(axis=1) <= 1.15 * characters.min(axis=1)).all()


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("concepts", [*((concept,) for concept in CONCEPTS), CONCEPTS], ids="-".join)
def test_length_does_not_tell_the_sides_apart(concepts, measure):
    """Within two standard errors of the rank-sum statistic of as many answers that are drawn alike."""
    pairs = tuple(chain.from_iterable(map(concept_pairs, concepts)))
    error = np.sqrt((2 * len(pairs) + 1) / 12) / len(pairs)
    assert abs(area(pairs, measure) - 0.5) < 2 * error


def test_a_length_that_tells_the_sides_apart_is_noticed():
    longer = [Pair(pair.question, f"{pair.matching} And so on.", pair.not_matching) for pair in concept_pairs("joy")]
    assert all(area(longer, measure) > 0.75 for measure in MEASURES.values())


def test_no_text_is_there_twice():
    pairs = tuple(chain.from_iterable(map(concept_pairs, CONCEPTS)))
    questions = [re.sub(r"\W+", " ", pair.question).lower().strip() for pair in pairs]
    answers = [re.sub(r"\W+", " ", answer).lower().strip() for pair in pairs for answer in pair[1:]]
    assert len(set(questions)) == len(questions)
    assert len(set(answers)) == len(answers)


def test_no_pair_differs_by_a_negation_alone():
    negations = {"not", "no", "never", "don't", "doesn't", "isn't", "can't", "won't"}
    for pair in chain.from_iterable(map(concept_pairs, CONCEPTS)):
        matching, not_matching = ({*re.findall(r"[\w']+", answer.lower())} - negations for answer in pair[1:])
        assert len(matching ^ not_matching) >= 4, pair


@pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")
def test_the_sides_are_as_long_in_tokens():
    tokenizer = from_gguf(Gguf(fetch.default_model()))
    for concept in CONCEPTS:
        assert gap(concept_pairs(concept), lambda answer: len(tokenizer.encode(f" {answer}", special=False))) < 0.02


@pytest.mark.parametrize("name", ["glee", "", None, 3])
def test_a_concept_that_the_library_does_not_have(name):
    with pytest.raises(ValueError, match=r"^name: expected (one of apathetic, .*, optimistic|a str), got"):
        concept_pairs(name)


# --- files of pairs ----------------------------------------------------------------------------------------------------

ROWS = {
    "own": [{"question": "a?", "matching": "b", "not_matching": " c "}],
    "own-without-question": [{"matching": "b", "not_matching": "c"}],
    "sides": [{"positive": "b", "negative": "c", "more": 1}],
    "sides-prompt": [{"prompt": "a?", "positive": "b", "negative": "c"}],
    "sides-null": [{"question": None, "positive": "b", "negative": "c"}],
    "preference": [{"prompt": "a?", "chosen": "b", "rejected": "c"}],
    "words": [{"question": "a?", "answer_matching_behavior": " b", "answer_not_matching_behavior": " c"}],
}


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


def write_list(path, rows):
    path.write_text(json.dumps(rows, indent=4))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {"lines": write_lines, "list": write_list, "parquet": write_parquet}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("form", ROWS)
def test_pairs_are_the_same_in_every_kind_of_file(tmp_path, form, write):
    """Whatever its name ends with."""
    path = tmp_path / "calm.data"
    write(path, ROWS[form])
    asked = any(ROWS[form][0].get(name) for name in ("question", "prompt"))
    assert read_pairs(path) == {"calm": (Pair("a?" if asked else "", "b", "c"),)}
    assert read_pairs(str(path)) == read_pairs(path)


def caa(question="Sing?\n\nChoices:\n (A) La.\n (B) Never.", matching="(A)", not_matching=" (B)"):
    return {"question": question, "answer_matching_behavior": matching, "answer_not_matching_behavior": not_matching}


@pytest.mark.parametrize("name", ["generate_dataset.json", "test_dataset_ab.json", "dataset.json", "singing.json"])
def test_questions_of_caa(tmp_path, name):
    (tmp_path / "singing").mkdir()
    write_list(tmp_path / "singing" / name, [caa(), caa(matching="(B)", not_matching="(A)")])
    question = caa()["question"]
    assert read_pairs(tmp_path / "singing" / name) == {
        "singing": (Pair(question, "(A)", "(B)"), Pair(question, "(B)", "(A)"))
    }


def record(k, category="positive", concept="rain", number=0, genre="text", output=None):
    """A record as AxBench writes it; the output tells of the category and the concept."""
    return {
        "input": f"ask {k}",
        "output": output or f"{category} {concept} {k}",
        "output_concept": concept,
        "concept_genre": genre,
        "category": category,
        "dataset_category": "instruction",
        "concept_id": number,
    }


def negative(k, genre="text"):
    return record(k, "negative", "EEEEE", -1, genre)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_records_of_training_share_the_negatives_of_a_genre(tmp_path, write):
    """As in AxBench's training files: few inputs are common to both sides."""
    rows = [negative(k, genre) for genre in ("text", "code") for k in (1, 2)]
    rows += [record(k, concept=concept, number=n, genre=genre) for n, (concept, genre) in enumerate(CASES) for k in (2, 3)]
    write(tmp_path / "train", rows)
    pairs = read_pairs(tmp_path / "train")
    assert pairs["rain"] == (
        Pair("", "ask 2\npositive rain 2", "ask 1\nnegative EEEEE 1"),
        Pair("", "ask 3\npositive rain 3", "ask 2\nnegative EEEEE 2"),
    )
    assert list(pairs) == ["rain", "loops", "rain (2)"]  # two features may have one description


CASES = (("rain", "text"), ("loops", "code"), ("rain", "text"))


def test_records_with_the_same_inputs_are_paired_by_them(tmp_path):
    rows = [negative(1), record(1), record(2), record(2, "negative"), record(3, "negative"), record(1, "negative")]
    rows += [record(3, "hard negative", "rain//reign"), record(1, "hard negative")]
    write_lines(tmp_path / "a.jsonl", rows)
    assert read_pairs(tmp_path / "a.jsonl") == {
        "rain": tuple(Pair(f"ask {k}", f"positive rain {k}", f"negative rain {k}") for k in (1, 2))
    }


def test_each_positive_of_an_input_has_a_negative_of_its_own(tmp_path):
    def rows(negatives):
        return [
            *(record(1, output=f"yes {k}") for k in range(2)),
            *(record(1, "negative") | {"output": f"no {k}"} for k in range(negatives)),
        ]

    for negatives, expected in ((1, [0, 0]), (2, [0, 1])):
        write_lines(tmp_path / "a.jsonl", rows(negatives))
        (pairs,) = read_pairs(tmp_path / "a.jsonl").values()
        assert [pair[1:] for pair in pairs] == [(f"yes {k}", f"no {n}") for k, n in enumerate(expected)]
    write_lines(tmp_path / "a.jsonl", rows(3))
    with pytest.raises(ValueError, match=r"^pairs: expected one negative for an input of 'rain', or one for .* got 3 for 2"):
        read_pairs(tmp_path / "a.jsonl")


def test_answers_that_are_words_of_one_letter_are_no_options(tmp_path):
    write_lines(tmp_path / "a.jsonl", [caa(question="Who sings?", matching="I", not_matching="You")])
    assert read_pairs(tmp_path / "a.jsonl")["a"] == (Pair("Who sings?", "I", "You"),)


def test_a_folder_of_files(tmp_path):
    with pytest.raises(ValueError, match=r"^pairs: .*JSON-lines, JSON or parquet.*without"):
        read_pairs(tmp_path)
    write_lines(tmp_path / "calm.jsonl", ROWS["own"])
    write_list(tmp_path / "brave.json", ROWS["sides"])
    write_parquet(tmp_path / "shy.parquet", ROWS["preference"])
    (tmp_path / "README.md").write_text("Pairs.")
    assert {name: pairs[0][1:] for name, pairs in read_pairs(tmp_path).items()} == dict.fromkeys(
        ("brave", "calm", "shy"), ("b", "c")
    )
    write_list(tmp_path / "calm.json", ROWS["sides"])
    with pytest.raises(ValueError, match=r"^pairs: .*got 'calm' again in calm.jsonl"):
        read_pairs(tmp_path)


GOOD = ROWS["own"][0]
BAD_ROWS = {
    "nothing": ([], "at least one pair, got none in"),
    "number": ([1], "an object with 'matching' and 'not_matching', .*'output_concept', 'category', got 1 in line 1 of kind"),
    "unknown": ([{"text": "a"}], r"an object with 'matching' .*, got {'text': 'a'} in line 1 of kind"),
    "half": ([{"question": "a", "matching": "b"}], '"not_matching" that is text and not empty, got .* in line 1 of kind'),
    "later": ([GOOD, GOOD | {"matching": None}], '"matching" that is text and not empty, got .* in line 2 of kind'),
    "mixed": ([GOOD, ROWS["sides"][0]], '"matching" that is text and not empty, got .* in line 2 of kind'),
    "empty": ([GOOD | {"not_matching": " "}], '"not_matching" that is text and not empty, got .* in line 1 of kind'),
    "messages": ([{"chosen": [{"role": "user"}], "rejected": "c"}], '"chosen" that is text and not empty'),
    "same": ([GOOD | {"not_matching": "b "}], "two answers that differ, got 'b' twice in line 1 of kind"),
    "question": ([GOOD | {"question": 3}], 'text as "question", got 3 in line 1 of kind'),
    "surrogate": ([GOOD | {"matching": "\ud83d"}], r"text that UTF-8 can hold, got .*ud83d.* in line 1 of kind"),
    "option": ([caa(), caa(matching="(C)")], r"an option of the question, got '\(C\)' in line 2 of kind"),
    "same-option": ([caa(matching="A", not_matching="(A)")], "an option of the question, got 'A' in line 1 of kind"),
    "half-option": ([caa(matching="(A", not_matching="(B)")], r"an option of the question, got '\(A' in line 1 of kind"),
    "small": ([caa(matching="(a)", not_matching="(b)")], r"an option of the question, got '\(a\)' in line 1 of kind"),
    "word": ([caa(matching="Yes")], "an option of the question, got 'Yes' in line 1 of kind"),
    "no-choices": ([caa(question="Sing?")], r"an option of the question, got '\(A\)' in line 1 of kind"),
    "category": ([record(1, "neutral")], "a category among positive, negative, hard negative, got 'neutral' in line 1"),
    "list-id": ([record(1) | {"concept_id": [1]}], r'a text or a number as "concept_id", got \[1\] in line 1 of kind'),
    "object-genre": ([record(1), record(2) | {"concept_genre": {}}], 'as "concept_genre", got {} in line 2 of kind'),
    "no-output": ([negative(1), record(1, output=" ")], '"output" that is text and not empty, got .* in line 2 of kind'),
    "no-positive": ([negative(1)], "at least one record that is positive, got none in kind"),
    "no-negative": ([record(1), negative(1, "code")], "negatives of 'rain', or of its genre, got none in kind"),
    "unpaired": ([record(1), record(2), negative(1)], "as many negatives as positives of 'rain'.*, got 2 and 1 in kind"),
    "same-output": (
        [record(1, output="x"), negative(1) | {"output": "x"}],
        "two answers that differ, got 'x' twice in line 1",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_entries_that_are_not_right(tmp_path, case):
    rows, message = BAD_ROWS[case]
    write_lines(tmp_path / "kind.jsonl", rows)
    with pytest.raises(ValueError, match=f"^pairs: expected .*{message}"):
        read_pairs(tmp_path / "kind.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "a text file in UTF-8, or a parquet file, got .*kind"),
        (b"PAR1", "a parquet file, got .*kind"),
        (b"{", "JSON, got .* in line 1 of kind"),
        (b'{"matching": "a", "not_matching": "b"}\n\n{', "JSON, got .* in line 3 of kind"),
        (b'[\n {"matching": "a"},\n {"matching" 3}\n]', "JSON, got .* in line 3 of kind"),
        (b"[" * 100_000, "JSON, got brackets nested too deep in kind"),
        (b'[{"matching": "a", "not_matching": "b"}, 3]', "an object with .*, got 3 in entry 1 of kind"),
        (b"[]", "at least one pair, got none in .*kind"),
        (b"", "at least one pair, got none in .*kind"),
        (b"question,matching,not_matching\n", "JSON, got .* in line 1 of kind"),
    ],
)
def test_files_that_are_not_right(tmp_path, content, message):
    (tmp_path / "kind").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)^pairs: expected {message}"):
        read_pairs(tmp_path / "kind")


def test_a_parquet_file_of_something_else(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"text": "a", "label": 0}])
    with pytest.raises(ValueError, match=r"^pairs: .*columns text, label in a\.parquet"):
        read_pairs(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", [*ROWS["own"], GOOD | {"matching": None}])
    with pytest.raises(ValueError, match=r"^pairs: .*\"matching\" .* in row 1 of b.parquet"):
        read_pairs(tmp_path / "b.parquet")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^pairs: .*JSON-lines, JSON or parquet.*does not exist"):
        read_pairs(tmp_path / "kind.jsonl")
    with pytest.raises(ValueError, match=r"^path: .*got 3"):
        read_pairs(3)
