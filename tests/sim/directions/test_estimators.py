"""Ways to a direction against brute force, and against what theory says they do in a trained model (N14)."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from sim.directions.estimators import WAYS, weights_of


def sets(n=12, m=12, d=40, seed=0):
    """Two sets of states around different means, in fewer dimensions than there are coordinates."""
    rng = np.random.default_rng(seed)
    basis, shift = rng.normal(size=(6, d)), rng.normal(size=d)
    p, q = (rng.normal(size=(size, 6)) @ basis for size in (n, m))
    return p + shift, q - 0.5 * shift + 0.1 * rng.normal(size=(m, d))


def direction(way, p, q):
    return weights_of(way, p, q) @ np.concatenate([p, q])


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("way", WAYS)
def test_a_strength_of_one_moves_as_far_as_the_means_are_apart(way):
    p, q = sets()
    v, apart = direction(way, p, q), p.mean(axis=0) - q.mean(axis=0)
    np.testing.assert_allclose(v @ v, v @ apart, rtol=1e-10)
    assert v @ apart > 0


@pytest.mark.parametrize("way", [way for way in WAYS if way != "difference-of-normalized-means"])
def test_what_all_states_share_has_no_say(way):
    p, q = sets()
    assert cosine(direction(way, p, q), direction(way, p + 3, q + 3)) == pytest.approx(1, abs=1e-8)
    assert weights_of(way, p, q).sum() == pytest.approx(0, abs=1e-10)


def test_the_difference_of_means():
    p, q = sets(n=7, m=5)
    np.testing.assert_allclose(direction("difference-of-means", p, q), p.mean(axis=0) - q.mean(axis=0), rtol=1e-12)


def test_the_difference_of_normalized_means():
    p, q = sets(n=7, m=5)
    means = [np.mean([row / np.sqrt(row @ row) for row in rows], axis=0) for rows in (p, q)]
    v = direction("difference-of-normalized-means", p, q)
    assert cosine(v, means[0] - means[1]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("way", ["pca-of-differences", "pca-of-states"])
def test_principal_components_are_eigenvectors(way):
    p, q = sets()
    rows = p - q if way == "pca-of-differences" else np.concatenate([p, q]) - np.concatenate([p, q]).mean(axis=0)
    largest = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    assert abs(cosine(direction(way, p, q), largest)) == pytest.approx(1, abs=1e-10)


def test_the_probe_is_the_minimum_of_its_loss():
    p, q = sets(n=9, m=15, d=10)
    states = np.concatenate([p, q])
    x = (states - states.mean(axis=0)) / np.sqrt(np.mean((states - states.mean(axis=0)) ** 2))
    y, share = np.repeat([1, -1], [9, 15]), np.repeat([12 / 9, 12 / 15], [9, 15])

    def loss(w):
        return share @ np.logaddexp(0, -y * (x @ w[:-1] + w[-1])) + w[:-1] @ w[:-1] / 2

    best = minimize(loss, np.zeros(11), method="BFGS", options={"gtol": 1e-8})
    assert cosine(direction("linear-probe", p, q), best.x[:-1]) == pytest.approx(1, abs=1e-6)


def test_sparse_coding_finds_the_atom_that_makes_the_difference():
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(30, 8)))[0].T
    codes = rng.laplace(size=(160, 8)) * (rng.random((160, 8)) < 0.2)
    codes[:, 0] = 1.5 * (np.arange(160) < 80) * (rng.random(160) < 0.4)
    v = direction("sparse-coding", (codes @ atoms)[:80], (codes @ atoms)[80:])
    assert cosine(v, atoms[0]) > 0.95 > cosine(direction("difference-of-means", *np.split(codes @ atoms, 2)), atoms[0])


@pytest.mark.parametrize("way", WAYS)
def test_in_a_trained_model_the_logits_move_by_what_the_weights_say(way):
    """N14: ``W v = sum_j w_j log p_j`` but for a constant, whatever the way."""
    with ufm.in_float64():
        rows = np.random.default_rng(1).dirichlet(np.ones(6), size=8)
        corpus = ufm.from_table(rows, [[0, 1, 2], [3, 4, 5]], [0] * 4 + [1] * 4)
        model = ufm.fit(corpus, tolerance=0.0).model
        states = np.asarray(model.embed(jnp.arange(8)))
        weights = weights_of(way, states[:4], states[4:])
        strengths = jnp.array([0.0, 1.0])
        moved = [ufm.steer(model, jnp.arange(8), jnp.asarray(weights @ states), alpha) for alpha in strengths]
        predicted = np.asarray(ufm.log_odds(corpus, jnp.asarray(weights)))
    moved = np.asarray(moved[1] - moved[0])
    for row in moved:
        np.testing.assert_allclose(row - row.mean(), predicted - predicted.mean(), atol=1e-6)


def test_the_size_of_states_does_not_matter():
    p, q = sets()
    for way in ("difference-of-means", "difference-of-normalized-means"):
        small, large = (weights_of(way, size * p, size * q) @ np.concatenate([p, q]) for size in (1.0, 1e12))
        np.testing.assert_allclose(small, large, rtol=1e-9)


@pytest.mark.usefixtures("as_users_have_it")
def test_bad_sets():
    p, q = sets()
    for message, arguments in {
        "^way: expected one of difference-of-means": ("mean", p, q),
        "^texts: expected two sets whose states differ": ("difference-of-means", p, p.copy()),
        "^texts: expected pairs": ("pca-of-differences", p, q[:5]),
        "^positive: ": ("linear-probe", p * np.nan, q),
        "^negative: expected states of the width of the positive ones, 6, got 5": (
            "difference-of-means",
            p[:, :6],
            q[:, :5],
        ),
        "^texts: expected sets whose means differ along the direction of pca-of-states": (
            "pca-of-states",
            np.array([[1, 0.1], [-1, 0.1]]),
            np.array([[1, -0.1], [-1, -0.1]]),
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            weights_of(*arguments)
