"""Bumps, their order, concepts and sigmoids, on curves made by hand."""

import numpy as np
import pytest

from sim.measure import curves
from sim.measure.curves import Peaks

X = np.linspace(-8, 8, 321)


def made(places):
    """Log-probabilities of one context, ``[1, K, V]``: a bump at each place, and a token that takes the rest."""
    bumps = np.stack([0.1 * np.exp(-((X - place) ** 2)) + 1e-4 for place in places], axis=-1)
    return np.log(np.concatenate([bumps, 1 - bumps.sum(axis=-1, keepdims=True)], axis=-1))[None]


def test_peaks_are_where_the_bumps_are():
    places = [-3.0, 0.5, 2.0]
    found = curves.peaks({"measured": made(places), "other": made([-3.0, 0.5, 20.0])}, X, 4)
    assert found.token.tolist() == [0, 1, 2, 3]
    assert found.bumps["measured"].tolist() == [1, 1, 1, 2]
    np.testing.assert_allclose(found.place["measured"][:3], places)
    assert found.bumps["other"].tolist() == [1, 1, 0, 1]
    assert curves.shares(found.bumps["measured"]) == {"one bump": 0.75, "none": 0.0, "several bumps": 0.25}
    assert curves.alike(found, "other") == {"same_kind": 0.5, "off": 0.0}


def test_the_place_is_that_of_the_only_bump_even_where_the_end_is_higher():
    curve = np.exp(-((X + 2) ** 2)) + 2 / (1 + np.exp(-(X - 4)))
    curve = 0.1 * curve / curve.max()
    found = curves.peaks({"measured": np.log(np.stack([curve, 1 - curve], axis=-1))[None]}, X, 2)
    assert found.bumps["measured"][0] == 1
    assert found.place["measured"][0] == pytest.approx(-2, abs=0.1)


def test_only_the_likeliest_at_both_ends_are_looked_at():
    rng = np.random.default_rng(0)
    rows = np.log(rng.dirichlet(np.ones(9), size=(2, X.size)))
    found = curves.peaks({"measured": rows}, X, 2)
    for context in range(2):
        ends = [set(np.argsort(rows[context, end])[-2:]) for end in (0, -1)]
        assert set(found.token[found.context == context]) == ends[0] | ends[1]


def test_the_order_is_kendalls_tau_counted_by_pairs():
    rng = np.random.default_rng(1)
    m, place = rng.normal(size=12), rng.normal(size=12)
    bumps = np.asarray([1] * 9 + [0, 2, 0])
    context = np.asarray([0] * 5 + [1] * 4 + [0, 0, 1])
    found = Peaks(context, np.arange(12), {"measured": bumps}, {"measured": place})
    taus = []
    for one in (0, 1):
        some = np.flatnonzero((context == one) & (bumps == 1))
        pairs = [(i, j) for i in some for j in some if i < j]
        taus.append(np.mean([np.sign((m[i] - m[j]) * (place[i] - place[j])) for i, j in pairs]))
    assert curves.order(found, m) == pytest.approx(np.mean(taus))
    assert curves.order(found, place) == pytest.approx(1)
    assert curves.order(Peaks(context, np.arange(12), {"measured": 0 * bumps}, {"measured": place}), m) is None


def test_probabilities_of_concepts_are_sums_over_tokens():
    rng = np.random.default_rng(2)
    p, concept = rng.dirichlet(np.ones(7), size=(3, 5)), np.asarray([0, 2, 1, 0, 1, 2, 2])
    found = curves.of_concepts(np.log(p), concept, 3)
    for k in range(3):
        np.testing.assert_allclose(found[..., k], p[..., concept == k].sum(axis=-1))


def test_a_sigmoid_is_found_again():
    y = 0.1 + 0.7 / (1 + np.exp(-(X - 1.5) / 0.4))
    found = curves.sigmoid(X, y)
    np.testing.assert_allclose(found[:4], [0.1, 0.8, 1.5, 0.4], rtol=1e-5)
    assert found.r_squared == pytest.approx(1)
    np.testing.assert_allclose(found(X), y, atol=1e-6)
    noisy = y + 0.05 * np.sin(40 * X)
    left = np.sum((noisy - curves.sigmoid(X, noisy)(X)) ** 2)
    assert curves.sigmoid(X, noisy).r_squared == pytest.approx(1 - left / np.sum((noisy - noisy.mean()) ** 2))


def test_bad_input():
    with pytest.raises(ValueError, match="alphas: expected strengths in increasing order"):
        curves.peaks({"measured": made([0.0])}, X[::-1], 1)
    with pytest.raises(ValueError, match="curves: expected one point for each of 3 strengths"):
        curves.peaks({"measured": made([0.0])}, X[:3], 1)
    with pytest.raises(ValueError, match="x: expected at least 5 points"):
        curves.sigmoid(X[:4], X[:4])
    with pytest.raises(ValueError, match="y: expected a curve that changes"):
        curves.sigmoid(X, np.ones_like(X))
