"""First-order rules for spending a budget, against covariances summed token by token and against random search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import allocation

TARGET = np.array([True, False, True, False, False])


@pytest.fixture
def prompts():
    """Log-probabilities of 4 prompts and the effects of 3 vectors on each."""
    rng = np.random.default_rng(1)
    log_p = jax.nn.log_softmax(jnp.asarray(2 * rng.normal(size=(4, 5))))
    return log_p, jnp.asarray(rng.normal(size=(4, 3, 5)))


def test_the_response_is_made_of_covariances(prompts):
    log_p, m = prompts
    found = allocation.response(log_p, m, jnp.asarray(TARGET))
    for j in range(4):
        p = np.exp(np.asarray(log_p[j]))
        values = np.concatenate([TARGET[None], np.asarray(m[j])])
        expected = np.cov(values, aweights=p, bias=True)
        np.testing.assert_allclose(found.gains[j], expected[0, 1:], atol=1e-14)
        np.testing.assert_allclose(found.covariance[j], expected[1:, 1:], atol=1e-14)


def test_gains_are_the_derivatives_of_the_share_and_covariances_those_of_kl(prompts):
    log_p, m = prompts[0][0], prompts[1][0]

    def steered(strengths):
        return jax.nn.log_softmax(log_p + strengths @ m)

    found, zero = allocation.response(log_p, m, jnp.asarray(TARGET)), jnp.zeros(3)
    share = jax.grad(lambda a: jnp.sum(jnp.exp(steered(a))[TARGET]))(zero)
    np.testing.assert_allclose(found.gains, share, atol=1e-14)
    for base in ("p", "steered"):

        def kl(a, base=base):
            q = steered(a)
            return jnp.sum(jnp.exp(log_p) * (log_p - q) if base == "p" else jnp.exp(q) * (q - log_p))

        np.testing.assert_allclose(found.covariance, jax.hessian(kl)(zero), atol=1e-13)


def test_gains_of_rare_and_of_nearly_certain_concepts_keep_their_digits():
    log_p = jnp.asarray([[-200.0, -1.0, -300.0, -0.5], [-1.0, -200.0, -0.5, -300.0]])
    log_p = log_p - jax.nn.logsumexp(log_p, axis=1, keepdims=True)
    m = jnp.asarray([1.0, 0.5, -1.0, 0.2])
    gains = allocation.response(log_p, jnp.broadcast_to(m, (2, 1, 4)), jnp.asarray([True, False, True, False])).gains[:, 0]
    p = np.exp(np.asarray(log_p))
    rare = p[0, 0] * (1.0 - (p[0, 1] * 0.5 + p[0, 3] * 0.2))
    certain = p[1, 1] * (p[1, 0] - p[1, 2] - 0.5)
    np.testing.assert_allclose(gains, [rare, certain], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_no_other_strengths_of_the_same_cost_gain_more(prompts, k):
    found = allocation.response(prompts[0], prompts[1][:, :k], jnp.asarray(TARGET))
    weights, budget = jnp.asarray([0.1, 0.2, 0.3, 0.4]), 0.02

    def gain(a):
        return np.einsum("j,jk,...jk->...", weights, found.gains, a)

    def cost(a):
        return np.einsum("j,...jk,jkl,...jl->...", weights, a, found.covariance, a) / 2

    best = allocation.best_strengths(*found, budget, weights)
    assert cost(best) == pytest.approx(budget, rel=1e-12)
    tried = np.asarray(best) + np.random.default_rng(0).normal(size=(20_000, 4, k)) * np.abs(best) * 0.3
    tried *= np.sqrt(budget / cost(tried))[:, None, None]
    gains = gain(tried)
    assert gains.max() < gain(best)
    assert gains.max() > 0.9 * gain(best)
    if k == 1:
        alone = allocation.strength_for_each(found.gains[:, 0], found.covariance[:, 0, 0], budget, weights)
        np.testing.assert_array_equal(alone, best[:, 0])


def test_the_mix_follows_measured_curves_at_a_small_budget(prompts):
    """With the exact share and KL: at 1e-6 nats the best direction of two vectors is the predicted one."""
    log_p, m = prompts[0][1], prompts[1][1, :2]
    found = allocation.response(log_p, m, jnp.asarray(TARGET))
    mix = allocation.best_mix(*found, 1e-6)
    angles = np.linspace(0, 2 * np.pi, 2001)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    directions *= np.sqrt(2e-6 / np.einsum("ai,ij,aj->a", directions, found.covariance, directions))[:, None]
    q = jax.nn.softmax(log_p + directions @ m)
    best = directions[np.argmax(np.sum(q[:, TARGET], axis=1))]
    assert best @ mix / np.linalg.norm(best) / np.linalg.norm(mix) > 1 - 1e-4


def test_vectors_that_do_the_same_share_the_work():
    gains, covariance = jnp.asarray([2.0, 2.0]), jnp.ones((2, 2))
    np.testing.assert_allclose(allocation.best_mix(gains, covariance, 0.5), [0.5, 0.5], rtol=1e-12)
    # A vector that does nothing gets nothing, and takes nothing from the other one.
    np.testing.assert_allclose(
        allocation.best_mix(jnp.asarray([2.0, 0.0]), jnp.diag(jnp.asarray([4.0, 0.0])), 0.5), [0.5, 0]
    )
    assert allocation.strength_for_each(jnp.zeros(2), jnp.asarray([1.0, 0.0]), 0.5).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.0}, "budget: expected a number of nats above 0"),
        ({"variances": jnp.ones(3)}, "variances: expected an axis n of 2"),
        ({"weights": jnp.asarray([1.0, 1.0])}, "weights: expected positive numbers of sum 1"),
        ({"weights": jnp.ones(1)}, "weights: expected an axis n of 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocation.strength_for_each(**({"gains": jnp.ones(2), "variances": jnp.ones(2), "budget": 0.1} | arguments))


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_gains_of_any_size_spend_the_budget_in_float32(size):
    gains, covariance = np.array([0.3, -0.2]) * size, np.array([[2.0, 0.5], [0.5, 1.0]])
    best = np.linalg.solve(covariance, gains)
    expected = best * np.sqrt(0.2 / (best @ covariance @ best))
    got = allocation.best_mix(jnp.asarray(gains, jnp.float32), jnp.asarray(covariance, jnp.float32), 0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("target", [np.zeros(5, bool), np.ones(5, bool)])
def test_a_concept_is_some_of_the_tokens(prompts, target):
    with pytest.raises(ValueError, match=r"^target: .*1 and 4 of 5"):
        allocation.response(*prompts, jnp.asarray(target))


def test_a_budget_that_a_short_float_does_not_have():
    with jax.enable_x64(False):
        np.testing.assert_allclose(allocation.best_mix(jnp.ones(2), jnp.eye(2), 1e-50), [1e-25, 1e-25], rtol=1e-6)
