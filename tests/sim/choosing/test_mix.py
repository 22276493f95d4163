"""The best mix of vectors, against brute force over mixes of the same cost and against differences of the model itself."""

import jax.numpy as jnp
import numpy as np
import pytest

import sim
from sim.choosing.mix import UNIT, mix
from sim.choosing.rollouts import FixedText, prompts_alone

RNG = np.random.default_rng(11)
PROMPTS = RNG.integers(3, 60, size=(5, 9)).tolist()
TOKENS = [4, 9, 33]
MEMBERS = jnp.zeros(61, bool).at[jnp.asarray(TOKENS)].set(True)
A, B, C = RNG.normal(size=(3, 32))
VECTORS = [sim.SteeringVector({0: A, 1: A}, "joy"), sim.SteeringVector({1: 30 * B, 2: B}, "calm")]


@pytest.fixture
def lm(small):
    return small("llama")


def gain_and_cost(lm, vector, layer, step):
    """What a small strength gains of the concept, and costs, per unit and per unit squared."""
    text = FixedText.of(lm, prompts_alone(PROMPTS), sim.Steering({layer: sim.Add(vector)}), skip=False)
    up, down = (text.effects(sign * step, MEMBERS) for sign in (1, -1))
    return np.nanmean(up.share - down.share) / (2 * step), np.nanmean(up.kl + down.kl) / (2 * step**2)


def test_no_other_mix_gains_more_for_its_cost(lm):
    best = mix(lm, VECTORS, PROMPTS, tokens=TOKENS)
    assert best.vector.layers == (1,)
    assert best.tokens == tuple(TOKENS)
    assert best.vector.name == "joy + calm"
    np.testing.assert_allclose(best.vector[1], best.weights[1] @ np.stack([A, 30 * B]), rtol=1e-5)
    gain, cost = gain_and_cost(lm, best.vector[1], 1, 0.03)
    assert cost == pytest.approx(UNIT, rel=0.03)
    worth = []
    for angle in np.linspace(-np.pi / 2, np.pi / 2, 25):
        other, price = gain_and_cost(lm, np.cos(angle) * A + np.sin(angle) * B, 1, 0.1)
        worth.append(abs(other) / np.sqrt(price))
    assert max(worth) <= 1.01 * gain / np.sqrt(cost)
    assert max(worth) >= 0.97 * gain / np.sqrt(cost)
    assert max(worth[0], worth[12], worth[-1]) < 0.97 * max(worth)


def test_a_mix_of_one_is_that_one_and_copies_share_the_work(lm):
    alone = mix(lm, VECTORS[:1], PROMPTS, tokens=TOKENS)
    assert alone.vector.layers == (0, 1)
    twice = mix(lm, [VECTORS[0], 2 * VECTORS[0]], PROMPTS, tokens=TOKENS)
    for layer in (0, 1):
        np.testing.assert_allclose(twice.vector[layer], alone.vector[layer], rtol=2e-3, atol=1e-4)
        assert abs(alone.vector[layer] @ A) == pytest.approx(
            np.linalg.norm(alone.vector[layer]) * np.linalg.norm(A), rel=1e-4
        )


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_mix_does_not_depend_on_the_lengths_of_vectors(lm, size):
    plain = mix(lm, VECTORS, PROMPTS, tokens=TOKENS)
    scaled = mix(lm, [size * VECTORS[0], VECTORS[1]], PROMPTS, tokens=TOKENS)
    np.testing.assert_allclose(scaled.vector[1], plain.vector[1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled.weights[1] * [size, 1], plain.weights[1], rtol=1e-3)


def test_a_mix_is_chosen_for_like_any_vector(lm):
    best = mix(lm, VECTORS, PROMPTS, tokens=TOKENS)
    choice = sim.choose(lm, best.vector, PROMPTS, layer=1, tokens=TOKENS, budget=0.05, of="mean", horizon=6)
    assert choice.guess == pytest.approx(np.sqrt(0.05 / UNIT), rel=1e-3)
    assert choice.cost.mean == pytest.approx(0.05, rel=0.03)


def test_tokens_are_those_that_any_vector_promotes(lm):
    both = mix(lm, VECTORS, PROMPTS, layers=[1]).tokens
    own = [set(mix(lm, [vector], PROMPTS, layers=[1]).tokens) for vector in VECTORS]
    assert set(both) == own[0] | own[1]
    assert own[0] != own[1]


@pytest.mark.parametrize(
    ("vectors", "options", "words"),
    [
        ([], {}, "vectors: expected at least one"),
        ([A], {}, "vectors: expected steering vectors"),
        (
            [sim.SteeringVector({0: A}), sim.SteeringVector({2: B})],
            {},
            "vectors: expected directions for one block in common",
        ),
        (VECTORS, {"tokens": [99]}, "tokens: expected"),
        (VECTORS, {"layers": [2]}, "layer"),
        ([sim.SteeringVector({1: 0 * A})], {}, "vectors: expected some that change the concept"),
        ([sim.SteeringVector({1: A[:5]})], {}, "vector"),
    ],
)
def test_bad_input_is_named(lm, vectors, options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        mix(lm, vectors, PROMPTS, **({"tokens": TOKENS} | options))
