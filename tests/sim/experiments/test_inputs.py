"""Files that the experiments read: of every kind, and what is said of those that are missing, empty or malformed."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from sim.checks.concept_texts import OPENINGS
from sim.directions.prompt_texts import CONTEXTS, STARTS
from sim.directions.texts import CONCEPTS, Pair, concept_pairs
from sim.experiments import corpora
from sim.experiments.inputs import (
    Question,
    own_questions,
    read_inputs,
    read_lines,
    read_prompts,
    read_questions,
)

QUESTIONS = [
    Question("What is 1 + 1?", ("1", "2", "3", '"four", he said'), 1),
    Question("Which,\nif any?", ("none", "a, b", "ä", "all"), 3),
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_rows(letters):
    return [
        {
            "question": question.text,
            "choices": list(question.choices),
            "answer": "ABCD"[question.answer] if letters else question.answer,
        }
        for question in QUESTIONS
    ]


def test_own_texts_where_no_file_is_given():
    inputs = read_inputs()
    assert inputs.contexts == (*OPENINGS, *CONTEXTS)
    assert inputs.starts == STARTS
    assert list(inputs.documents) == corpora.manual()
    assert inputs.questions == own_questions()
    assert inputs.prompts is None
    assert len(inputs.questions) == 45
    assert inputs.pairs == {name: concept_pairs(name) for name in CONCEPTS}


def test_files_instead(tmp_path):
    inputs = read_inputs(
        contexts=write(tmp_path / "contexts", "One\r\n\n  Two  \n"),
        starts=write(tmp_path / "starts", "Three"),
        text=write(tmp_path / "text", "a\n\n\nb"),
        questions=write(tmp_path / "q.csv", "Why?,a,b,c,d,C\n"),
        prompts=write(tmp_path / "p", '{"set": "joy", "text": "x"}\n\n{"set": "random", "text": "y", "more": 1}\n'),
        pairs=write(tmp_path / "calm.jsonl", '{"question": "a", "matching": "b", "not_matching": "c"}\n'),
    )
    assert inputs.pairs == {"calm": (Pair("a", "b", "c"),)}
    assert inputs.contexts == ("One", "Two")
    assert inputs.starts == ("Three",)
    assert [text.strip() for text in inputs.documents] == ["a", "b"]
    assert inputs.questions == (Question("Why?", ("a", "b", "c", "d"), 2),)
    assert inputs.prompts == {"joy": ("x",), "random": ("y",)}
    assert set(inputs.about) == {"contexts", "starts", "text", "questions", "prompts", "pairs.calm"}


def test_pairs_of_an_experiment_have_questions(tmp_path):
    """A text that stands by itself is no answer whose probability could be measured."""
    row = '{"question": "%s", "positive": "b", "negative": "c"}'
    path = write(tmp_path / "calm.jsonl", f"{row % 'a'}\n{row % ''}\n")
    with pytest.raises(ValueError, match=r"^pairs: .*question.*pair 1 of 'calm' in calm.jsonl"):
        read_inputs(pairs=path)


@pytest.mark.parametrize("letters", [True, False])
def test_questions_are_the_same_in_every_kind_of_file(tmp_path, letters):
    csv = '"What is 1 + 1?",1,2,3,"""four"", he said",B\r\n\r\n"Which,\nif any?",none,"a, b",ä,all,D\r\n'
    assert read_questions(write(tmp_path / "a.csv", csv)) == QUESTIONS
    lines = "\n".join(json.dumps(row, ensure_ascii=letters) for row in as_rows(letters))
    assert read_questions(write(tmp_path / "a.jsonl", lines)) == QUESTIONS
    table = pyarrow.Table.from_pylist([row | {"subject": "sums"} for row in as_rows(letters)])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_questions(tmp_path / "a.parquet") == QUESTIONS


def test_a_mark_at_the_beginning_is_no_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert read_lines(write(tmp_path / "a", mark + b"One"), "contexts") == ["One"]
    assert read_prompts(write(tmp_path / "b", mark + b'{"set": "joy", "text": "x"}')) == {"joy": ("x",)}
    assert read_questions(write(tmp_path / "c.csv", mark + b"Why?,a,b,c,d,A"))[0].text == "Why?"
    assert corpora.read_documents(write(tmp_path / "d", mark + b"One")) == ["One"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_where_a_line_ends(tmp_path, separator):
    text = f"one{separator}two"
    line = json.dumps({"set": "joy", "text": text}, ensure_ascii=False)
    assert read_prompts(write(tmp_path / "a", f"{line}\r\n{line}")) == {"joy": (text, text)}
    assert read_lines(write(tmp_path / "b", text), "starts") == [text]


@pytest.mark.parametrize(
    ("argument", "content", "message"),
    [
        ("contexts", None, "expected a text file, got .* which does not exist"),
        ("contexts", "", "expected at least one line, got none in"),
        ("starts", " \n\n", "expected at least one line, got none in"),
        ("starts", b"\xff\xfe", "expected a text file in UTF-8, got"),
        ("text", None, "expected a text or a parquet file, got .* which does not exist"),
        ("text", "\n\n\n\n", "expected at least one document, got none in"),
        ("prompts", None, "expected a JSON-lines file, got .* which does not exist"),
        ("prompts", "", "expected at least one line, got none in"),
        ("prompts", b"\xff", "expected a text file in UTF-8, got"),
        ("prompts", '{"set": "joy", "text": "x"}\n\n{"set"', "expected JSON, got .* in line 3 of file"),
        ("prompts", "[1]", 'expected an object with "set" and "text", not empty, got [1] in line 1 of file'),
        ("prompts", '{"set": "joy", "text": 3}', "got {'set': 'joy', 'text': 3} in line 1 of file"),
        ("prompts", '{"set": "joy", "text": " "}', "not empty, got {'set'"),
        ("prompts", '{"text": "x"}', "got {'text': 'x'} in line 1 of file"),
    ],
)
def test_texts_that_are_not_right(tmp_path, argument, content, message):
    path = tmp_path / "file"
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=f"^{argument}: .*") as caught:
        read_inputs(**{argument: path})
    assert_like(str(caught.value), message)
    assert "file" in str(caught.value)


def assert_like(text, message):
    """Whether a message has the parts, between which there may be anything."""
    place = 0
    for part in message.split(" .* "):
        assert part in text[place:], text
        place = text.index(part, place) + len(part)


GOOD = "Why?,a,b,c,d,A\n"
ROW = {"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", None, "expected a CSV, JSON-lines or parquet file, got"),
        ("q.txt", GOOD, "expected a file whose name ends with .csv, .jsonl, .parquet, got"),
        ("q.csv", "\n", "expected at least one question, got none in"),
        ("q.csv", b"\xff", "expected a CSV file in UTF-8, got"),
        ("q.csv", GOOD + '"a', "expected a CSV file in UTF-8, got"),
        (
            "q.csv",
            GOOD + "Why?,a,b,c,d\n",
            "expected a question, four answers and a letter, got 5 columns in line 2 of q.csv",
        ),
        ("q.csv", GOOD + "\n" + "Why?,a,,c,d,A\n", "expected four answers that are not empty, got .* in line 3 of q.csv"),
        ("q.csv", GOOD + ",a,b,c,d,A\n", "expected a question, got '' in line 2 of q.csv"),
        ("q.csv", GOOD + "Why?,a,b,c,d,E\n", "expected an answer A to D or 0 to 3, got 'E' in line 2 of q.csv"),
        ("q.csv", GOOD + "Why?,a,b,c,d,AB\n", "expected an answer A to D or 0 to 3, got 'AB' in line 2 of q.csv"),
        ("q.csv", "question,A,B,C,D,answer\n", "expected an answer A to D or 0 to 3, got 'answer' in line 1 of q.csv"),
        ("q.jsonl", "", "expected at least one question, got none in"),
        ("q.jsonl", [ROW, "{"], "expected JSON, got .* in line 2 of q.jsonl"),
        ("q.jsonl", [ROW, 3], "expected a question, got None in line 2 of q.jsonl"),
        (
            "q.jsonl",
            [ROW | {"choices": "abcd"}],
            "expected four answers that are not empty, got 'abcd' in line 1 of q.jsonl",
        ),
        ("q.jsonl", [ROW | {"choices": ["a", "b", "c"]}], "expected four answers .* in line 1 of q.jsonl"),
        ("q.jsonl", [ROW | {"choices": ["a", "b", "c", 4]}], "expected four answers .* in line 1 of q.jsonl"),
        ("q.jsonl", [ROW | {"answer": 4}], "got 4 in line 1 of q.jsonl"),
        ("q.jsonl", [ROW | {"answer": True}], "got True in line 1 of q.jsonl"),
        ("q.jsonl", [ROW | {"answer": None}], "got None in line 1 of q.jsonl"),
        ("q.jsonl", [{"question": "Why?"}], "expected four answers that are not empty, got None in line 1 of q.jsonl"),
        ("q.parquet", b"PAR1", "expected a parquet file, got"),
        ("q.parquet", [{"question": "Why?"}], "expected columns question, choices, answer, got none of choices, answer"),
        ("q.parquet", [ROW, ROW | {"answer": 7}], "expected an answer A to D or 0 to 3, got 7 in row 1 of q.parquet"),
        ("q.parquet", [ROW, ROW | {"question": None}], "expected a question, got None in row 1 of q.parquet"),
        ("q.parquet", [], "expected columns question, choices, answer"),
    ],
)
def test_questions_that_are_not_right(tmp_path, name, content, message):
    path = tmp_path / name
    if path.suffix == ".parquet" and isinstance(content, list):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif isinstance(content, list):
        write(path, "\n".join(row if isinstance(row, str) else json.dumps(row) for row in content))
    elif content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=r"^questions: ") as caught:
        read_questions(path)
    assert_like(str(caught.value), message)
    assert name in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    for argument in ("contexts", "starts", "text", "questions", "prompts"):
        with pytest.raises(ValueError, match=f"^{argument}: expected .* file"):
            read_inputs(**{argument: tmp_path})


def test_long_rows_are_cut_in_messages(tmp_path):
    row = json.dumps({"set": "joy", "text": ["x" * 1000]})
    with pytest.raises(ValueError, match=r"\.\.\. in line 1") as caught:
        read_prompts(write(tmp_path / "a", row))
    assert len(str(caught.value)) < 200
