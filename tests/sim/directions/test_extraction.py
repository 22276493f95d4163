"""Vectors from texts: their diagnosis by hand, sinks taken out, every way; on the default model, length has no say."""

from dataclasses import replace

import numpy as np
import pytest

import sim
from sim.checks.concept_texts import JOY
from sim.directions.estimators import WAYS
from sim.directions.extraction import make_vector, separation
from sim.directions.states import text_states
from sim.directions.texts import Pair, concept_pairs, sides_of
from tests.sim.bridge.test_model import letters

RNG = np.random.default_rng(0)
POSITIVE = RNG.integers(3, 30, size=(6, 7)).tolist()
NEGATIVE = RNG.integers(30, 60, size=(6, 7)).tolist()


@pytest.fixture
def lm(small):
    return small("llama")


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_paper_s_way_is_the_difference_of_means(lm):
    vector = make_vector(lm, POSITIVE, NEGATIVE, tokens="all", name="mine")
    means = [[lm.states([row])[0][:, 0].mean(axis=1) for row in side] for side in (POSITIVE, NEGATIVE)]
    expected = np.mean(means[0], axis=0) - np.mean(means[1], axis=0)
    assert vector.layers == (0, 1, 2)
    for layer, v in vector.directions.items():
        np.testing.assert_allclose(v, expected[layer], rtol=2e-5, atol=1e-5)
    assert vector.extraction["texts"] == [6, 6]
    assert vector.extraction["tokens"] == "all"
    assert vector.diagnosis[0].removed_share is None
    assert vector.model.d_model == 32
    assert vector.name == "mine"


def test_nothing_is_left_along_the_sinks(lm):
    states = text_states(lm, POSITIVE, NEGATIVE)
    vector = make_vector(lm, POSITIVE, NEGATIVE)
    for layer, v in vector.directions.items():
        sink = states.sinks[layer] / np.linalg.norm(states.sinks[layer])
        plain = states.positive[layer].mean(axis=0) - states.negative[layer].mean(axis=0)
        np.testing.assert_allclose(v, plain - (plain @ sink) * sink, atol=2e-6)
        diagnosis = vector.diagnosis[layer]
        assert diagnosis.sink_share < 1e-12
        assert diagnosis.removed_share == pytest.approx(cosine(plain, sink) ** 2, rel=1e-4)
        assert diagnosis.relative_norm == pytest.approx(np.linalg.norm(v) / states.scales[layer], rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_a_direction_for_every_block(lm, way):
    vector = make_vector(lm, POSITIVE, NEGATIVE, way=way, layers=[2, 0])
    states = text_states(lm, POSITIVE, NEGATIVE)
    assert vector.layers == (0, 2)
    sink = vector.sinks[2].astype(float)
    p, n = (
        side[2] - np.outer(side[2] @ sink, sink) for side in (states.positive.astype(float), states.negative.astype(float))
    )
    apart = p.mean(axis=0) - n.mean(axis=0)
    assert vector[2] @ vector[2] == pytest.approx(vector[2] @ apart, rel=1e-4)


def means(p, n):
    """The difference of means of some texts of each set, refused if it is 0."""

    def made(rows):
        v = p[rows].mean(axis=0) - n[rows].mean(axis=0)
        if not v.any():
            raise ValueError(rows)
        return v

    return made


def test_separation_by_hand():
    rng = np.random.default_rng(1)
    p, n = rng.normal(size=(8, 5)) + 0.7, rng.normal(size=(10, 5))
    cosine_of_halves, accuracy, effect = separation(means(p, n), p, n)
    first, second = (p[k::2].mean(axis=0) - n[k::2].mean(axis=0) for k in (0, 1))
    assert cosine_of_halves == pytest.approx(cosine(first, second))
    right, effects = 0.0, []
    for v, k in ((first, 0), (second, 1)):
        middle = (p[k::2].mean(axis=0) @ v + n[k::2].mean(axis=0) @ v) / 2
        high, low = p[1 - k :: 2] @ v, n[1 - k :: 2] @ v
        right += sum(x > middle for x in high) / (4 * 4) + sum(x < middle for x in low) / (4 * 5)
        spread = ((np.sum((high - high.mean()) ** 2) / 3 + np.sum((low - low.mean()) ** 2) / 4) / 2) ** 0.5
        effects.append((high.mean() - low.mean()) / spread)
    assert accuracy == pytest.approx(right)
    assert effect == pytest.approx(np.mean(effects))


def test_of_too_few_texts_nothing_is_said():
    p, n = np.eye(3)[:1], np.eye(3)[1:]
    assert separation(means(p, n), p, n) == (None, None, None)
    assert separation(means(n, n), n, n) == (None, None, None)


def test_pairs_of_texts_and_of_answers(lm):
    lm = replace(lm, tokenizer=letters())
    texts = [Pair("", "ABCD", "EFGH"), Pair("", "IJKL", "MNOP")]
    plain = make_vector(lm, ["ABCD", "IJKL"], ["EFGH", "MNOP"])
    np.testing.assert_array_equal(make_vector(lm, pairs=texts)[1], plain[1])
    answers = [pair._replace(question="Q") for pair in texts]
    asked = make_vector(lm, ["ABCD", "IJKL"], ["EFGH", "MNOP"], questions=["Q", "Q"], chat=True)
    np.testing.assert_array_equal(make_vector(lm, pairs=answers, chat=True)[1], asked[1])
    assert asked.extraction["answers"]
    for pairs, message in (
        ([], "at least one"),
        ([texts[0], answers[0]], "in every pair, or in none, got one in 1 of 2"),
        (["AB"], "a list of Pair"),
        ("joy", "a list of pairs"),
    ):
        with pytest.raises(ValueError, match=f"^pairs: .*{message}"):
            make_vector(lm, pairs=pairs)
    with pytest.raises(ValueError, match=r"^pairs: .*beside them"):
        make_vector(lm, ["AB"], pairs=texts)
    with pytest.raises(ValueError, match=r"^positive: .*or pairs"):
        make_vector(lm, ["AB"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative": POSITIVE}, "^texts: expected two sets whose states differ"),
        ({"way": "mean"}, "^way: expected one of difference-of-means"),
        ({"way": "pca-of-differences", "negative": NEGATIVE[:3]}, "^texts: expected pairs"),
        ({"layers": [3]}, r"^layers: expected blocks from 0 to 2, got \[3\]"),
        ({"layers": []}, "^layers: "),
        ({"positive": []}, "^positive: "),
        ({"tokens": "first"}, "^tokens: "),
    ],
)
def test_bad_input(lm, change, message):
    with pytest.raises(ValueError, match=message):
        make_vector(lm, **{"positive": POSITIVE, "negative": NEGATIVE} | change)


@pytest.mark.slow
def test_the_default_vector_does_not_measure_length():
    """Seven tokens added to one set, on a real model: the paper's way gives their number, the default hardly notices."""
    lm = sim.load("smollm2-135m-instruct", progress=False)
    end = " So that is how it is."
    longer = [f"{text}{end}" for text in JOY.negative]
    added = {
        len(lm.tokenizer.encode(new)) - len(lm.tokenizer.encode(old)) for new, old in zip(longer, JOY.negative, strict=True)
    }
    assert added == {7}
    states, mask = map(np.asarray, lm.states([*JOY.positive, *JOY.negative]))
    first = np.mean([states[:, k, row.argmax()].astype(float) for k, row in enumerate(mask)], axis=0)
    for tokens, steady in (("content", True), ("all", False)):
        before, after = (make_vector(lm, JOY.positive, texts, tokens=tokens) for texts in (JOY.negative, longer))
        cosines = [cosine(before[layer], after[layer]) for layer in before.layers]
        shares = [cosine(after[layer], first[layer]) ** 2 for layer in after.layers]
        assert (min(cosines) > 0.95) == steady
        assert (max(shares) < 0.02) == steady
        of_length = [block for block, sentences in after.warnings.items() if "how long texts are" in " ".join(sentences)]
        assert bool(of_length) != steady
    # Texts of different lengths, so that some end where others go on.
    positive, negative, _ = sides_of(concept_pairs("evil"))
    before, after = (make_vector(lm, positive, texts) for texts in (negative, [f"{text}{end}" for text in negative]))
    assert min(cosine(before[layer], after[layer]) for layer in before.layers) > 0.95
