"""Steering within a budget of KL: the factor, sweeps of the toy, and the value that says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import Add, Steering
from ufm.distributions import kl
from ufm.kl_cap import ENOUGH, factor_within

RNG = np.random.default_rng(2)
BUDGET = 0.02


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


@pytest.mark.parametrize("x64", [True, False])
def test_strengths_whose_squares_are_no_floats_spend_the_budget_too(x64):
    with jax.enable_x64(x64):
        logits, m = jnp.asarray(RNG.normal(size=(2, 6, 40)))
        for alpha in (1e4, 1e200) if x64 else (1e4, 1e20, 1e30):

            def predict(s, alpha=alpha):
                return jax.nn.log_softmax(logits + (alpha * s[:, None]) * m)

            log_p = predict(jnp.zeros(6))
            nats = np.asarray(kl(log_p, predict(factor_within(predict, log_p, jnp.asarray(0.01)))))
            assert (nats <= 0.01 * (1 + 1e-4)).all()
            assert nats.min() > 0.005


# --- as a steering ---------------------------------------------------------------------------------------------------


@pytest.fixture
def direction(small_model):
    return ufm.difference_of_means(small_model, np.arange(5), ufm.contrast(5, [0, 1], [2, 4]))


ALPHAS = np.array([-300.0, -3.0, -0.3, 0.0, 0.3, 3.0, 300.0])


def test_a_sweep_of_the_toy_keeps_to_the_budget_and_uses_it(small_model, direction):
    contexts = np.arange(5)
    plain = np.asarray(ufm.divergence(small_model, contexts, direction, ALPHAS))
    nats = np.asarray(ufm.divergence(small_model, contexts, Steering(Add(direction), budget=BUDGET), ALPHAS))
    over = plain > BUDGET
    assert 5 < over.sum() < over.size - 5
    np.testing.assert_allclose(nats[~over], plain[~over], rtol=1e-12, atol=1e-18)
    assert (nats[over] <= BUDGET * (1 + 1e-12)).all()
    assert np.median(nats[over]) >= ENOUGH * BUDGET


def test_all_that_steers_a_split_model_takes_it(small_corpus, small_model, direction):
    """Against the same strengths lowered by hand: a prediction within a budget is that of some lower strength."""
    capped, contexts = Steering(Add(direction), budget=BUDGET), np.arange(5)
    logits = np.asarray(ufm.steer(small_model, contexts, capped, 3.0))
    base = np.asarray(small_model.decode(small_model.embed(jnp.asarray(contexts))))
    tilt = np.asarray(small_model.decode(jnp.asarray(direction)[None]))[0]
    factors = ((logits - base) @ tilt) / (tilt @ tilt) / 3.0
    np.testing.assert_allclose(logits, base + 3 * factors[:, None] * tilt, atol=1e-12)
    assert ((factors > 0) & (factors < 1)).all()
    assert np.ptp(factors) > 0.01
    p = np.asarray(jax.nn.softmax(logits))
    rise = ufm.probability_increase(small_model, contexts, capped, [3.0])[:, 0]
    np.testing.assert_allclose(rise, p - np.asarray(jax.nn.softmax(base)), atol=1e-12)
    of_concepts = ufm.concept_increase(small_model, contexts, capped, [3.0], small_corpus.concepts)[:, 0]
    np.testing.assert_allclose(of_concepts[:, 0], np.asarray(rise)[:, [0, 2]].mean(axis=1), atol=1e-12)
    more = ufm.cross_entropy_increase(small_model, small_corpus, capped, [3.0])
    log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(base)
    expected = -np.sum(np.asarray(small_corpus.weights)[:, None] * np.exp(small_corpus.log_p) * np.asarray(log_q - log_p))
    np.testing.assert_allclose(more, [expected], atol=1e-12)
    # Where nothing is lowered, derivatives are those without a budget.
    np.testing.assert_allclose(
        ufm.curvature(small_model, contexts, capped), ufm.curvature(small_model, contexts, direction), rtol=1e-12
    )


def test_budgets_are_mapped_over(small_model, direction):
    def cost(budget):
        contexts, steering = jnp.arange(5), Steering(Add(jnp.asarray(direction)), budget=budget)
        return kl(small_model.decode(small_model.embed(contexts)), ufm.steer(small_model, contexts, steering, 50.0))

    budgets = jnp.asarray([1e-4, 1e-2, 1.0])
    nats = jax.jit(jax.vmap(cost))(budgets)
    assert (nats <= budgets[:, None] * (1 + 1e-12)).all()
    assert (np.diff(nats, axis=0) > 0).all()


@pytest.mark.parametrize("budget", [0, -1.0, np.nan, np.inf, "much", [0.1, 0.2]])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match=r"^budget: .*above 0"):
        Steering(Add(np.ones(3)), budget=budget)
    with pytest.raises(ValueError, match=r"^budget: .*above 0"):
        Steering(Add(np.ones(3))).within(budget)


def test_the_value():
    capped, plain = Steering({2: Add(np.ones(3))}, budget=0.1), Steering({3: Add(np.ones(3))})
    assert repr(capped) == "Steering(2: Add, budget=0.1)"
    assert (plain.within(0.3).budget, capped.within(None).budget) == (0.3, None)
    assert capped.with_layers([4]).budget == 0.1
    assert (capped + capped).budget == 0.1
    assert (plain + plain).budget is None
    for first, second in ((capped, plain), (plain, capped), (capped, Steering(Add(np.ones(3)), budget=0.2))):
        with pytest.raises(ValueError, match=r"^budget: expected one for both steerings, or none for either, got .*0.1"):
            first + second
    assert jax.tree.map(lambda leaf: leaf, capped).budget == 0.1
    assert jax.jit(lambda nats: (plain.within(nats) + plain.within(0.2)).budget)(0.2) == pytest.approx(0.2)
