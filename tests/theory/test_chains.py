"""Steering over many steps, against texts listed one by one."""

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import chains

STEPS = 4


@pytest.fixture
def chain():
    """Three tokens: rows, log-odds, a set of tokens, and the distribution of the token before the first."""
    rng = np.random.default_rng(4)
    return rng.dirichlet(np.ones(3), size=3), rng.normal(size=3), np.array([True, False, True]), rng.dirichlet(np.ones(3))


def tilted(rows, m, alpha):
    rows = rows * np.exp(alpha * m)
    return rows / rows.sum(axis=1, keepdims=True)


def texts(rows, start):
    """Every text of `STEPS` tokens with its probability."""
    for z in product(range(3), repeat=STEPS + 1):
        yield z[1:], start[z[0]] * np.prod([rows[a, b] for a, b in pairwise(z)])


def test_shares_are_those_of_texts_listed_one_by_one(chain):
    rows, _, target, start = chain
    counted = sum(probability * target[list(text)] for text, probability in texts(rows, start))
    np.testing.assert_allclose(chains.shares(jnp.log(rows), jnp.asarray(target), jnp.asarray(start), STEPS), counted)


def test_the_response_is_the_derivative_of_the_shares(chain):
    rows, m, target, start = map(jnp.asarray, chain)

    def shares(alpha):
        return chains.shares(chains.steered(jnp.log(rows), m, alpha), target, start, STEPS)

    found = chains.response(jnp.log(rows), m, target, start, STEPS)
    np.testing.assert_allclose(found, jax.jacfwd(shares)(0.0), atol=1e-14)


def test_the_long_run_is_the_end_of_a_long_text_and_the_derivative_of_the_stationary_share(chain):
    rows, m, target, start = map(jnp.asarray, chain)
    found = chains.long_run_response(jnp.log(rows), m, target)
    assert found == pytest.approx(float(chains.response(jnp.log(rows), m, target, start, 400)[-1]), rel=1e-12)

    def share(alpha):
        return jnp.sum(jnp.where(target, chains.stationary(chains.steered(jnp.log(rows), m, alpha)), 0))

    by_share = jax.jacfwd(share)(0.0)
    assert found == pytest.approx(float(by_share), rel=1e-12)
    nu = chains.stationary(jnp.log(rows))
    np.testing.assert_allclose(nu @ rows, nu)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_cost_of_a_text_is_within_the_bound(chain, direction):
    rows, m, _, start = chain
    for alpha in (-3.0, 0.1, 1.0):
        # The token before the first is not written: what is compared is the text given that token.
        before, after = ([q for _, q in texts(r, start)] for r in (rows, tilted(rows, m, alpha)))
        before, after = np.array(before), np.array(after)
        kl = np.sum(before * np.log(before / after)) if direction == "forward" else np.sum(after * np.log(after / before))
        if direction == "forward":
            found = chains.sequence_divergence(jnp.log(rows), jnp.asarray(m), alpha, jnp.asarray(start), STEPS)
            assert found == pytest.approx(kl, rel=1e-12)
        assert kl <= chains.sequence_bound(np.ptp(m), alpha, STEPS)


def test_amplification_is_a_geometric_sum():
    steps = np.array([1, 2, 7])
    for eigenvalue in (-0.5, 0.0, 0.9):
        sums = [sum(eigenvalue**k for k in range(n)) for n in steps]
        np.testing.assert_allclose(chains.amplification(eigenvalue, jnp.asarray(steps)), sums)
    assert chains.amplification(0.9, jnp.inf) == pytest.approx(10)


def test_the_pair_of_shares_tells_whether_a_chain_lumps():
    rows = jnp.log(jnp.asarray([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.1, 0.3, 0.6]]))
    on, off = chains.two_shares(rows, jnp.asarray([True, False, False]))
    np.testing.assert_allclose(on, [0.5, 0.5])
    np.testing.assert_allclose(off, [0.1, 0.1])
    np.testing.assert_allclose(chains.two_shares(rows, jnp.asarray([True, True, False]))[0], [0.7, 0.7])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, t: chains.shares(q, t, jnp.full(2, 0.5), 0), "steps: expected a whole number of at least 1"),
        (
            lambda q, t: chains.shares(q, ~t & t, jnp.full(2, 0.5), 3),
            "target: expected between 1 and 1 of 2 tokens, got none",
        ),
        (lambda q, t: chains.response(q, q[0], t | ~t, jnp.full(2, 0.5), 3), "target: .* got all"),
        (lambda q, t: chains.long_run_response(q, q[0], t | ~t), "target: .* got all"),
        (lambda q, t: chains.two_shares(q, t & ~t), "target: .* got none"),
        (lambda q, t: chains.shares(q, t, jnp.asarray([2.0, 0.0]), 3), "start: expected a distribution"),
        (
            lambda q, t: chains.sequence_divergence(q, q[0], 1.0, jnp.asarray([1.5, -0.5]), 3),
            "start: expected a distribution",
        ),
        (
            lambda q, t: chains.stationary(jnp.log(jnp.eye(2))),
            "log_q: expected a chain with one distribution in the long run",
        ),
        (lambda q, t: chains.amplification(1.0, 3), "eigenvalue: expected a number above -1 and below 1"),
        (lambda q, t: chains.amplification(0.5, 0), "steps: expected at least 1"),
        (lambda q, t: chains.sequence_bound(1.0, 1.0, 0), "steps: expected a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.log(jnp.full((2, 2), 0.5)), jnp.asarray([True, False]))
