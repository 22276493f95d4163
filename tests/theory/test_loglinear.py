"""Log-linear families: closed under steering (N24), where mixtures are not."""

import jax.numpy as jnp
import numpy as np

import ufm
from tests import oracles
from theory import loglinear
from theory.statements.n24_overlapping import virtual


def test_a_steered_context_is_a_context_of_the_family():
    family, corpus = loglinear.overlapping()
    model, contexts = ufm.exact(corpus), jnp.arange(9)
    v = ufm.difference_of_means(model, contexts, ufm.contrast(9, [0, 1], [5, 6, 7]))
    x = np.asarray(family.coordinates)
    moved = x + 1.7 * (x[:2].mean(axis=0) - x[5:8].mean(axis=0))
    led_to = ufm.log_linear(np.asarray(family.base), np.asarray(family.features), moved, [[0, 1, 2, 3], [4, 5], [6, 7, 8]])
    np.testing.assert_allclose(
        oracles.softmax(np.asarray(ufm.steer(model, contexts, v, 1.7))), np.exp(led_to.log_p), atol=1e-12
    )


def test_the_virtual_context_at_strength_0_is_the_context():
    family, corpus = loglinear.overlapping()
    np.testing.assert_allclose(virtual(family, 0.0), corpus.log_p, atol=1e-12)


def nearest_mixture(p, q):
    """The least KL from p to a mixture of the rows of q, nats, by expectation maximisation."""
    share = np.full(len(q), 1 / len(q))
    for _ in range(20_000):
        share = (share[:, None] * q / (share @ q) * p).sum(axis=1)
    return float(np.sum(p * np.log(p / (share @ q))))


def test_mixtures_are_not_closed_under_steering():
    """The figures of the page on N24."""
    q = np.array([[0.6, 0.25, 0.1, 0.05], [0.05, 0.15, 0.3, 0.5], [0.2, 0.3, 0.4, 0.1]])
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]]) @ q
    m = np.log(p[0]) - np.log(p[1])
    got = [nearest_mixture(row, q) for alpha in (0.5, 2.0) for row in oracles.softmax(np.log(p) + alpha * m)]
    np.testing.assert_allclose(got, [6.14e-3, 3.19e-4, 1.52e-3, 2.34e-1, 6.78e-2, 6.37e-2], rtol=5e-3)
