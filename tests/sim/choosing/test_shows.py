"""A share of texts that show the concept: against every strength of a grid, and where there is no answer."""

import json
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import sim
from sim.choosing.criteria import TextsAtLeast
from sim.choosing.crossing import least_reaching
from sim.choosing.rollouts import Writer
from sim.choosing.search import COARSE
from tests.sim.bridge.test_model import letters

PROMPTS = ["ABCDE", "FGH", "CABBED", "HE", "DAD", "BEAD", "FACE", "EGG"]
HORIZON = 8
V = np.random.default_rng(1).normal(size=32).astype(np.float32)


@pytest.fixture
def lm(small):
    return replace(small("llama"), tokenizer=letters())


@pytest.fixture
def steering():
    """After the last block of three."""
    return sim.Steering({2: sim.Add(V)})


@pytest.fixture
def letters_of(lm):
    """The eight letters that a long vector promotes."""
    ids = np.argsort(-np.asarray(lm.decoder.logits(jnp.asarray(V)[None]))[0])[:8]
    return {lm.tokenizer.decode([z]) for z in ids.tolist()}


@pytest.fixture(params=["some in a text", "part of a text"])
def shows(request, letters_of):
    """Who says that a text shows the letters: with 0 and 1, or with a number between."""

    def part(texts):
        found = [[letter in letters_of for letter in text.split()] for text in texts]
        return np.array([np.mean(letters or [0]) for letters in found])

    def some_in_a_text(texts):
        return [float(share >= 0.3) for share in part(texts)]

    return part if request.param == "part of a text" else some_in_a_text


def shown_at(lm, steering, alpha, shows):
    writer = Writer.of(lm, PROMPTS, HORIZON)
    return float(np.mean(shows(writer.texts(writer(steering, alpha)))))


def test_the_strength_is_the_least_of_those_around_that_reaches_the_share(lm, steering, shows):
    share = (shown_at(lm, steering, 0.0, shows) + shown_at(lm, steering, 3.0, shows)) / 2
    choice = sim.choose(lm, steering, PROMPTS, share=share, shows=shows, horizon=HORIZON)
    assert choice.stopped_by == "share"
    assert choice.shown == (shown_at(lm, steering, 0.0, shows), shown_at(lm, steering, choice.alpha, shows))
    assert choice.shown[0] < share <= choice.shown[1]
    assert shown_at(lm, steering, choice.alpha / (1 + COARSE), shows) < share
    assert choice.interval[0] <= choice.alpha <= choice.interval[1]
    assert choice.written_at == choice.alpha
    assert choice.settings["shows"] == shows.__name__
    assert json.loads(json.dumps(choice.as_json()))["shown"] == {"before": choice.shown[0], "after": choice.shown[1]}
    assert f"{choice.shown[1]:.1%} with it" in str(choice)


def test_the_cost_is_measured_on_the_text_that_shows_it(lm, steering, shows):
    choice = sim.choose(lm, steering, PROMPTS, share=0.25, shows=shows, horizon=HORIZON)
    again = sim.choose(lm, steering, PROMPTS, budget=choice.cost.p95, horizon=HORIZON)
    assert again.alpha == pytest.approx(choice.alpha, rel=0.1)


def test_it_may_cost_more_than_a_budget_allows(lm, steering, shows):
    choice = sim.choose(lm, steering, PROMPTS, share=0.25, shows=shows, budget=1e-3, horizon=HORIZON)
    assert choice.alpha is None
    assert "more than budget allows" in choice.reason


def test_what_no_text_shows_is_said_with_what_was_tried(lm, steering):
    choice = sim.choose(lm, steering, PROMPTS, share=0.6, shows=lambda texts: [0.25] * len(texts), horizon=HORIZON)
    assert choice.alpha is None
    assert re.search(
        r"makes 60.0% of the texts show the concept: at most 25.0% do, at \S+, and 25.0% without", choice.reason
    )
    assert len(choice.points) == 8


def test_what_texts_show_without_steering_needs_none(lm, steering):
    choice = sim.choose(lm, steering, PROMPTS, share=0.2, shows=lambda texts: [0.25] * len(texts), horizon=HORIZON)
    assert choice.reason == "without steering 25.0% of the texts show the concept already"


def test_the_best_of_several_layers_is_chosen_by_cost(lm, shows):
    vector = sim.SteeringVector({1: V, 2: V}, "letters")
    choice = sim.choose(lm, vector, PROMPTS, layer="auto", share=0.2, shows=shows, horizon=HORIZON)
    costs = {chosen.layer: chosen.cost.mean for chosen in (choice, *choice.others) if chosen.alpha is not None}
    assert choice.layer == min(costs, key=costs.get)
    assert all(other.settings["shows"] == shows.__name__ for other in choice.others)


def half(texts):
    return [0.5] * len(texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"shows": half},
            "^share: expected the part of the texts .* beside shows, got none",
        ),
        ({"share": 1.0, "shows": half}, "^share: expected a part of the texts between 0 and 1, got 1"),
        ({"share": 0.5, "shows": 3}, "^shows: expected a function of a list of texts"),
        ({"share": 0.5, "shows": lambda texts: texts[1:]}, "^shows: expected real numbers"),
        ({"share": 0.5, "shows": lambda texts: [0.5]}, "^shows: expected a probability for each of 8 texts, got an array"),
        ({"share": 0.5, "shows": lambda texts: [2.0] * 8}, "^shows: expected a probability .* got numbers from 2.0 to 2.0"),
        ({"share": 0.5, "shows": lambda texts: [np.nan] * 8}, "^shows: expected finite numbers, got nan"),
    ],
)
@pytest.mark.usefixtures("as_users_have_it")
def test_what_cannot_be_asked_is_refused(lm, steering, options, words):
    with pytest.raises(ValueError, match=words):
        sim.choose(lm, steering, PROMPTS, horizon=HORIZON, **options)


def test_a_model_without_texts_shows_nothing(lm, steering):
    silent = replace(lm, tokenizer=None)
    with pytest.raises(ValueError, match=r"^shows: expected none, for a model without a tokenizer"):
        sim.choose(silent, steering, [[3, 4, 5]], share=0.5, shows=half, horizon=HORIZON)


@pytest.mark.parametrize("step", [0.3, 1.0, 7.7, 63.0])
def test_the_least_strength_over_a_step(step):
    seen = []

    def excess(alpha):
        seen.append(alpha)
        return -0.5 if alpha < step else 0.5

    found = least_reaching(excess, [2.0**k for k in range(-3, 7)], tolerance=0.05, least=1e-4)
    assert step <= found <= step * 1.05
    assert len(seen) <= 16


def test_a_step_below_the_ladder_is_found_and_one_above_is_not():
    assert least_reaching(lambda alpha: alpha - 0.01, [1.0, 2.0], tolerance=0.05, least=1e-4) == pytest.approx(
        0.01, rel=0.05
    )
    assert least_reaching(lambda alpha: 1.0, [1.0, 2.0], tolerance=0.05, least=1e-2) <= 1e-2
    assert least_reaching(lambda alpha: -1.0, [1.0, 2.0], tolerance=0.05, least=1e-2) is None
    assert least_reaching(lambda alpha: np.inf, [1.0, 2.0], tolerance=0.05, least=1e-2) is None


def test_a_floor_is_a_number_below_and_above():
    floor = TextsAtLeast(0.5, half)
    np.testing.assert_array_equal(floor.of(["A", "B"]), [0.5, 0.5])
    assert floor.name == "share"
