"""Assumption 2 on a trained model: every number against one that is counted, token by token, in NumPy."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from sim.bridge.architectures import from_config
from sim.bridge.model import random_model
from sim.experiments import corpora
from sim.experiments.gpt.assumption_2 import fidelity
from sim.experiments.gpt.letter_case import LOWER, NONE, UPPER, case_of, case_of_tokens, case_so_far, contexts
from sim.experiments.gpt.training import finished
from tests.sim.experiments.conftest import DOCUMENTS, TINY


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def measured_text(trained):
    """The model, a text, and for every token of it the ones before it, the next one and the model's log-probabilities."""
    with jax.enable_x64(False):
        training = finished(trained[1], DOCUMENTS)
        tokens, length = training.held_out, TINY.length
        rows = [tokens[k : k + length + 1].tolist() for k in range(0, tokens.size - length, length)]
        logits = training.model.logits([row[:-1] for row in rows])
    places = [
        (row[: t + 1], row[t + 1], log_softmax(log_p[t].astype(float)))
        for row, log_p in zip(rows, logits, strict=True)
        for t in range(length)
    ]
    return training.model, tokens, places


def of_last(places, following):
    """KL of the next token given the last, from frequencies and averaged probabilities."""
    total = 0.0
    lasts = np.asarray([before[-1] for before, _, _ in places])
    for last in np.unique(lasts):
        chosen = np.flatnonzero(lasts == last)
        model = np.mean([np.exp(places[k][2]) for k in chosen], axis=0)
        frequency = np.bincount([following[k] for k in chosen], minlength=model.size) / chosen.size
        total += chosen.size / lasts.size * rel_entr(frequency, model).sum()
    return total


def test_the_numbers_are_those_counted_token_by_token(measured_text):
    model, tokens, places = measured_text
    fit = fidelity(model, tokens, TINY.length)
    following = [after for _, after, _ in places]
    assert fit.tokens == len(places)
    assert fit.loss == pytest.approx(-np.mean([log_p[after] for _, after, log_p in places]), rel=1e-5)
    assert fit.last_token == pytest.approx(of_last(places, following), rel=1e-4)
    counts = np.unique(following, return_counts=True)[1] / len(places)
    assert fit.unigram == pytest.approx(-np.sum(counts * np.log(counts)))
    pairs = np.unique([before[-1] * 10_000 + after for before, after, _ in places], return_counts=True)[1] / len(places)
    lasts = np.unique([before[-1] for before, _, _ in places], return_counts=True)[1] / len(places)
    assert fit.bigram == pytest.approx(np.sum(lasts * np.log(lasts)) - np.sum(pairs * np.log(pairs)))


def test_a_perfect_model_is_one_whose_text_it_draws(measured_text):
    model, tokens, places = measured_text
    fit, rng = fidelity(model, tokens, TINY.length, draws=64), np.random.default_rng(5)
    p = np.exp([log_p for _, _, log_p in places])
    texts = [[int(rng.choice(row.size, p=row / row.sum())) for row in p] for _ in range(64)]
    values = [of_last(places, text) for text in texts]
    error = np.hypot(fit.perfect_deviation, np.std(values)) / 8
    assert abs(fit.perfect - np.mean(values)) < 5 * error
    assert fit.perfect_deviation == pytest.approx(np.std(values, ddof=1), rel=0.5)


def test_going_on_in_the_same_case(measured_text):
    model, tokens, places = measured_text
    fit, words = fidelity(model, tokens, TINY.length), model.tokenizer
    cases = [case_of(words.decode([z])) for z in range(words.size)]
    same, probabilities = [], []
    for before, after, log_p in places:
        text = before[len(before) - 1 - before[::-1].index(words.eos) :] if words.eos in before else before
        lettered = [cases[z] for z in text if cases[z] != NONE]
        if not lettered or cases[after] == NONE:
            continue
        p = np.exp(log_p)
        masses = [p[np.asarray(cases) == case].sum() for case in (UPPER, LOWER)]
        same.append(lettered[-1] == cases[after])
        probabilities.append(masses[lettered[-1]] / sum(masses))
    assert fit.letters == len(same) > 0
    assert fit.same_case == pytest.approx(np.mean(same))
    assert fit.same_case_model == pytest.approx(np.mean(probabilities), rel=1e-5)


def test_draws_are_seeded(measured_text):
    model, tokens, _ = measured_text
    first, second = (fidelity(model, tokens, TINY.length, seed=seed).as_json() for seed in (3, 3))
    assert first == second
    assert first["perfect"] != fidelity(model, tokens, TINY.length, seed=4).perfect


def test_cases():
    assert [case_of(text) for text in ("the", " THE", "The", "12 ", "\N{GREEK SMALL LETTER BETA}", "")] == [
        LOWER, UPPER, NONE, NONE, LOWER, NONE,
    ]  # fmt: skip
    words = corpora.train_tokenizer(["the the the", "THE THE THE"], 270)
    assert [case_of_tokens(words)[words.encode(text)[0]] for text in ("the", "THE", "1")] == [LOWER, UPPER, NONE]


def test_the_case_so_far_ends_with_a_document():
    cases, end = np.asarray([UPPER, LOWER, NONE, NONE]), 3
    rows = np.asarray([[2, 1, 2, 0, 2, 3, 2, 1], [0, 2, 2, 2, 3, 1, 2, 2]])
    expected = [[NONE, LOWER, LOWER, UPPER, UPPER, NONE, NONE, LOWER], [UPPER] * 4 + [NONE] + [LOWER] * 3]
    np.testing.assert_array_equal(case_so_far(rows, cases, end), expected)


def test_contexts_are_pieces_of_one_document_in_one_case():
    cases, end = np.asarray([UPPER, LOWER, NONE, NONE]), 3
    tokens = np.asarray([3, 0, 2, 2, 0, 0, 3, 1, 1, 1, 2, 3, 2, 2, 0, 1])
    assert contexts(tokens, cases, end, 2) == {UPPER: [[0, 2], [2, 0]], LOWER: [[1, 1], [1, 2]]}


def test_bad_input(measured_text):
    model, tokens, _ = measured_text
    with pytest.raises(ValueError, match="tokens: expected more than 12, got 12"):
        fidelity(model, tokens[:12], 12)
    with pytest.raises(ValueError, match="draws: expected at least 2, got 1"):
        fidelity(model, tokens, 12, draws=1)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    bare = random_model(from_config({"model_type": "gpt2", "vocab_size": 9, **shape}), jax.random.key(0))
    with pytest.raises(ValueError, match=r"model: .*got none"):
        fidelity(bare, tokens, 12)
