"""Whether texts show a concept: probabilities against likelihoods that are added up by hand."""

import jax
import numpy as np
import pytest
from scipy.special import expit

from sim.directions.opinions import Shows, judged, right_on_pairs
from sim.directions.prompt_texts import DEFINITIONS, plain_request
from sim.directions.texts import Pair
from tests.sim.experiments import tiny, unsplit

TEXTS = ["The cat sat on the mat.", "It said nothing", "", "   ", " my sister opened the door", "a"]


@pytest.fixture(scope="module")
def judge():
    with jax.enable_x64(False):
        return tiny.judging()


def test_a_judge_says_1_rather_than_0(judge):
    shows = Shows(judge, "anger")
    odds = judged(judge, TEXTS, "anger")[1]
    expected = [expit(x) if text.strip() else 0.0 for x, text in zip(odds, TEXTS, strict=True)]
    np.testing.assert_allclose(shows(TEXTS), expected)
    assert shows.name == f"anger, by judge of {judge.name}"


def test_a_ratio_is_that_of_the_likelihoods_of_whole_texts(judge):
    words, expected = judge.tokenizer, []
    for text in TEXTS:
        body, sides = words.encode(text.strip()), []
        for announced in (DEFINITIONS["evil"].means, DEFINITIONS["evil"].opposite):
            opening = words.encode(plain_request(announced))
            log_p = unsplit.log_p(judge, [*opening, *body])[len(opening) - 1 : -1]
            sides.append(sum(row[token] for row, token in zip(log_p, body, strict=True)))
        expected.append(expit(sides[0] - sides[1]) if body else 0.0)
    np.testing.assert_allclose(Shows(judge, "evil", "ratio")(TEXTS), expected, atol=1e-3)


def test_no_texts_have_no_probabilities(judge):
    assert Shows(judge, "evil", "ratio")([]).shape == (0,)


def test_pairs_say_how_far_it_can_be_trusted(judge, monkeypatch):
    shows = Shows(judge, "joy")
    monkeypatch.setattr(Shows, "log_odds", lambda _, texts: np.array([float(len(text)) for text in texts]))
    pairs = [Pair("", "long", "no"), Pair("", "no", "long"), Pair("", "even", "ties"), Pair("", "longer", "long")]
    assert right_on_pairs(shows, pairs) == (2 + 0.5) / 4
    with pytest.raises(ValueError, match=r"^pairs: expected at least one, got none"):
        right_on_pairs(shows, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"by": "tokens"}, "^by: expected one of judge, ratio, got 'tokens'"),
        ({"by": 3}, "^by: expected one of judge, ratio, got 3"),
        ({"concept": " "}, "^concept: expected its name"),
        ({"concept": "anger", "by": "ratio"}, "^concept: expected one of apathetic, .*got 'anger'"),
        ({"judge": "gpt2"}, "^judge: expected a language model of sim.load, got 'gpt2'"),
    ],
)
@pytest.mark.usefixtures("as_users_have_it")
def test_an_opinion_of_nobody_or_nothing_is_refused(judge, change, words):
    with pytest.raises(ValueError, match=words):
        Shows(**{"judge": judge, "concept": "joy", **change})
