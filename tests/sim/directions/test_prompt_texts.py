"""The texts of the experiments: complete, neutral where they should be, and questions that can be marked."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

import sim
from sim.checks.concept_texts import BEGINNINGS, OPENINGS
from sim.directions import prompt_texts

CONCEPTS = ("apathetic", "depression", "evil", "humorous", "impolite", "joy", "lying", "optimistic")
LETTERS = "ABCD"


def rows():
    with (Path(sim.__file__).parent / "data" / "questions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_eight_concepts_in_words():
    assert tuple(prompt_texts.DEFINITIONS) == CONCEPTS
    assert all(name == definition.name for name, definition in prompt_texts.DEFINITIONS.items())
    texts = [text for definition in prompt_texts.DEFINITIONS.values() for text in (definition.means, definition.opposite)]
    assert len(set(texts)) == 16
    # They go on from "known for" and are followed by a full stop.
    assert all(text.split(" ")[0].rstrip(",").endswith("ing") and text[-1].isalpha() for text in texts)


@pytest.mark.parametrize("definition", prompt_texts.DEFINITIONS.values(), ids=lambda definition: definition.name)
def test_an_opposite_does_not_name_what_it_negates(definition):
    assert definition.name in definition.means
    assert definition.name not in definition.opposite


def test_starts_and_contexts_are_neutral():
    neutral = (*prompt_texts.STARTS, *prompt_texts.CONTEXTS, *OPENINGS)
    assert not [(name, text) for name in CONCEPTS for text in neutral if name in text.lower()]


def test_no_beginning_is_used_twice():
    texts = (*prompt_texts.STARTS, *prompt_texts.CONTEXTS, *OPENINGS, *BEGINNINGS)
    assert not [(a, b) for a, b in itertools.permutations(texts, 2) if a.startswith(b)]


def test_starts_and_contexts_have_the_lengths_that_they_should_have():
    assert len(prompt_texts.STARTS) == 12
    assert all(4 <= len(text.split()) <= 9 for text in prompt_texts.STARTS)
    assert len(prompt_texts.CONTEXTS) == 6
    assert all(30 <= len(text.split()) <= 60 for text in prompt_texts.CONTEXTS)
    # A context stops in the middle of a sentence; words are parted by one space, and none is left at an end.
    assert all(text[-1].isalpha() for text in prompt_texts.CONTEXTS)
    assert all(text == " ".join(text.split()) for text in (*prompt_texts.STARTS, *prompt_texts.CONTEXTS))


@pytest.mark.parametrize("ask", [prompt_texts.request, prompt_texts.plain_request])
def test_requests_contain_the_definition_and_no_other(ask):
    for definition in prompt_texts.DEFINITIONS.values():
        assert definition.means in ask(definition.means)
        assert definition.opposite not in ask(definition.means)
    assert ask("juggling with eggs").replace("juggling with eggs", "singing") == ask("singing")


def test_a_base_model_is_in_the_middle_of_speech():
    assert prompt_texts.plain_request("singing").endswith(':\n"')


def test_the_judge_sees_the_text_and_the_concept():
    asked = prompt_texts.judge_request("Purple {rain}\nfalls.", "joy")
    assert "Purple {rain}\nfalls." in asked
    assert "joy" in asked
    assert asked.endswith("Answer:")
    assert "joy" not in prompt_texts.judge_request("Purple rain.", "evil")


def test_questions_have_one_right_answer_each():
    assert len(rows()) == 45
    for row in rows():
        assert len(row) == 6
        question, *options, answer = row
        assert question.endswith("?")
        assert len(question.split()) <= 20
        assert len({option.lower() for option in options}) == 4
        assert all(1 <= len(option.split()) <= 4 and option == option.strip() for option in options)
        assert answer in LETTERS
    assert len({row[0].lower() for row in rows()}) == 45


def test_no_letter_is_right_more_often_than_another():
    answers = [row[5] for row in rows()]
    assert set(answers[:5]) == set(LETTERS)
    assert Counter(answers[5:]) == dict.fromkeys(LETTERS, 10)


def arithmetic():
    """What can be computed in the questions."""
    for question, *options, answer in rows():
        right = options[LETTERS.index(answer)]
        for word, value in (("plus", int.__add__), ("minus", int.__sub__), ("times", int.__mul__)):
            if f" {word} " in question:
                left, other = question.removeprefix("What is ").rstrip("?").split(f" {word} ")
                yield right, value(int(left), int(other))


def test_sums_are_right():
    questions = list(arithmetic())
    assert len(questions) == 3
    assert all(int(right) == value for right, value in questions)
