"""Generation within a budget of KL for each token, against the same strengths at the same tokens of whole texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import sim
from sim.bridge.generation import Sampling
from sim.bridge.kl_cap import factor_within
from ufm.measures import kl

RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(3, 60, size=n).tolist() for n in (6, 9, 4, 7)]
V, W = RNG.normal(size=(2, 32))
NEW, ALPHA = 7, 4.0


@pytest.fixture
def lm(small):
    return small("llama")


STEERING = sim.Steering({0: sim.Add(V)})


def held(lm, budget, *, steering=STEERING, alpha=ALPHA, **options):
    sampling = Sampling(temperature=1.0)
    return lm.generate(
        PROMPTS, max_new_tokens=NEW, sampling=sampling, steering=steering, alpha=alpha, budget=budget, stop=False, **options
    )


def recomputed(lm, prompt, tokens, factors):
    """KL of each prediction of a text from whole passes, each token steered by its own strength."""
    text = [*prompt, *tokens[:-1]]
    places = [np.arange(len(text)) < len(prompt)] + [np.arange(len(text)) == len(prompt) + k for k in range(len(tokens) - 1)]
    parts = [sim.Steering({0: sim.Add(V)}, tokens=sim.Where(jnp.asarray(place))) for place in places]
    whole = sum(parts[1:], parts[0])
    split, own = lm.split([text], last_only=False).resolve(whole)
    state = split.embed(jnp.arange(1))
    log_q = log_softmax(np.asarray(split.steered(state, own, ALPHA * jnp.asarray(factors)), float)[0], axis=-1)
    log_p = log_softmax(np.asarray(split.decode(state), float)[0], axis=-1)
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)[len(prompt) - 1 :]


@pytest.mark.parametrize("budget", [0.003, 0.1])
def test_costs_are_those_of_whole_texts_and_stay_near_the_budget(lm, budget):
    generated = held(lm, budget)
    costs, factors = np.asarray(generated.costs), np.asarray(generated.factors)
    assert costs.shape == factors.shape == (4, NEW)
    for row, prompt in enumerate(PROMPTS):
        expected = recomputed(lm, prompt, generated.tokens[row], factors[row])
        np.testing.assert_allclose(costs[row], expected, rtol=2e-3, atol=2e-6)
    acting = factors > 0
    assert acting.mean() > 0.6
    assert (costs[acting] <= budget * 1.001).all()
    assert np.median(costs[acting & (factors < 1)]) > 0.85 * budget
    assert 0 < factors[acting].min() < factors[acting].max() <= 1


def test_a_budget_of_almost_nothing_leaves_the_text_as_it_is(lm):
    plain = lm.generate(PROMPTS, max_new_tokens=NEW, sampling=Sampling(temperature=1.0), stop=False)
    assert held(lm, 1e-9).tokens == plain.tokens


def test_a_budget_that_is_never_spent_leaves_the_strength_as_it_is(lm):
    plain = lm.generate(
        PROMPTS, max_new_tokens=NEW, sampling=Sampling(temperature=1.0), stop=False, steering=STEERING, alpha=ALPHA
    )
    generated = held(lm, 1e3)
    assert generated.tokens == plain.tokens
    assert set(np.ravel(generated.factors)) == {1.0}
    assert plain.factors == plain.costs == ()


def test_strengths_of_prompts_and_parts_are_lowered_alike(lm):
    both = sim.Steering({0: sim.Add(V), 2: sim.Add(W)})
    alpha = np.array([[1.0, 0.0], [-2.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    generated = held(lm, 0.05, steering=both, alpha=alpha)
    again = held(lm, 0.05, alpha=alpha[:, 0])
    assert generated.tokens == again.tokens
    np.testing.assert_allclose(generated.factors, again.factors, rtol=1e-3)
    assert generated.factors[3] == (1.0,) * NEW


def test_the_same_seed_gives_the_same_and_copies_differ(lm):
    first, second = held(lm, 0.05), held(lm, 0.05)
    assert first == second
    copies = held(lm, 0.05, num_return_sequences=2)
    assert len(copies.tokens) == len(copies.costs) == 8
    assert copies.costs[0][0] == copies.costs[1][0]
    assert copies.tokens[0] != copies.tokens[1]


@pytest.mark.parametrize("budget", [0, -1.0, np.nan, np.inf, "much", [0.1, 0.2]])
def test_a_budget_that_is_none_is_refused(lm, budget):
    with pytest.raises(ValueError, match=r"^budget: .*above 0"):
        held(lm, budget)


def test_a_budget_needs_a_steering(lm):
    with pytest.raises(ValueError, match=r"^budget: expected none, where nothing steers"):
        lm.generate(PROMPTS, budget=1.0)


@pytest.mark.parametrize("before", [0.0, 0.3])
def test_the_factor_of_a_law_is_that_of_bisection(before):
    """Logits ``l + (before + 5 s) m``: what was steered before has its part in the cost."""
    logits, m = jnp.asarray(RNG.normal(size=(2, 6, 40)))
    log_p = jax.nn.log_softmax(logits)

    def predict(s):
        return jax.nn.log_softmax(logits + (before + 5 * s[:, None]) * m)

    for budget in (0.01, 0.3, 2.0):
        factor = np.asarray(factor_within(predict, log_p, jnp.asarray(budget)))
        spent = np.asarray(kl(log_p, predict(jnp.zeros(6)))) > budget
        low, high = np.zeros(6), np.ones(6)
        for _ in range(40):
            middle = (low + high) / 2
            fits = np.asarray(kl(log_p, predict(jnp.asarray(middle)))) <= budget
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        assert (factor[spent] == 0).all()
        np.testing.assert_allclose(factor[~spent], low[~spent], rtol=0.1)
        assert (factor <= low * 1.0001).all()


def test_predictions_that_are_not_finite_are_stepped_back_from():
    logits, m = jnp.asarray(RNG.normal(size=(2, 3, 40)))

    def predict(s):
        return jax.nn.log_softmax(jnp.where(s[:, None] > 0.6, jnp.nan, logits + s[:, None] * m))

    factor = np.asarray(factor_within(predict, jax.nn.log_softmax(logits), jnp.asarray(50.0)))
    assert ((factor > 0.3) & (factor <= 0.6)).all()
