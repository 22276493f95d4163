"""Bumps, their order, concepts and sigmoids, on curves made by hand."""

import numpy as np
import pytest

from sim.measure import curves
from sim.measure.curves import Peaks, Sigmoid

X = np.linspace(-8, 8, 321)


def made(places):
    """Log-probabilities of one context, ``[1, K, V]``: a bump at each place, and a token that takes the rest."""
    bumps = np.stack([0.1 * np.exp(-((X - place) ** 2)) + 1e-4 for place in places], axis=-1)
    return np.log(np.concatenate([bumps, 1 - bumps.sum(axis=-1, keepdims=True)], axis=-1))[None]


def test_bumps_are_maxima_inside_that_stand_out():
    x = np.linspace(-4, 4, 401)
    single, double = np.exp(-(x**2)), np.exp(-((x - 2) ** 2)) + np.exp(-((x + 2.0) ** 2))
    rise = 1 / (1 + np.exp(-x))
    shapes = curves.shapes(np.stack([single, rise, double, rise + 1e-5 * np.sin(40 * x)]))
    assert shapes.bumps.tolist() == [1, 0, 2, 0]
    assert shapes.place[:2].tolist() == [200, 400]
    assert shapes.single.tolist() == [True, False, False, False]
    assert curves.counts_of_kinds(shapes.bumps).tolist() == [1, 2, 1]
    assert curves.counts_of_kinds(np.asarray([3, 1, 4])).tolist() == [1, 0, 2]


def test_peaks_are_where_the_bumps_are():
    places = [-3.0, 0.5, 2.0]
    peaks = curves.peaks({"measured": made(places), "other": made([-3.0, 0.5, 20.0])}, X, 4)
    assert peaks.token.tolist() == [0, 1, 2, 3]
    assert peaks.bumps["measured"].tolist() == [1, 1, 1, 2]
    np.testing.assert_allclose(peaks.place["measured"][:3], places)
    assert peaks.bumps["other"].tolist() == [1, 1, 0, 1]
    assert curves.shares(peaks.bumps["measured"]) == {"one bump": 0.75, "none": 0.0, "several bumps": 0.25}
    assert curves.alike(peaks, "other") == {"same_kind": 0.5, "off": 0.0}


def test_the_place_is_that_of_the_only_bump_even_where_the_end_is_higher():
    curve = np.exp(-((X + 2) ** 2)) + 2 / (1 + np.exp(-(X - 4)))
    curve = 0.1 * curve / curve.max()
    peaks = curves.peaks({"measured": np.log(np.stack([curve, 1 - curve], axis=-1))[None]}, X, 2)
    assert peaks.bumps["measured"][0] == 1
    assert peaks.place["measured"][0] == pytest.approx(-2, abs=0.1)


def test_only_the_likeliest_at_both_ends_are_looked_at():
    rng = np.random.default_rng(0)
    rows = np.log(rng.dirichlet(np.ones(9), size=(2, X.size)))
    peaks = curves.peaks({"measured": rows}, X, 2)
    for context in range(2):
        ends = [set(np.argsort(rows[context, end])[-2:]) for end in (0, -1)]
        assert set(peaks.token[peaks.context == context]) == ends[0] | ends[1]


def test_the_order_is_kendalls_tau_counted_by_pairs():
    rng = np.random.default_rng(1)
    m, place = rng.normal(size=12), rng.normal(size=12)
    bumps = np.asarray([1] * 9 + [0, 2, 0])
    context = np.asarray([0] * 5 + [1] * 4 + [0, 0, 1])
    peaks = Peaks(context, np.arange(12), {"measured": bumps}, {"measured": place})
    taus = []
    for k in (0, 1):
        counted = np.flatnonzero((context == k) & (bumps == 1))
        pairs = [(i, j) for i in counted for j in counted if i < j]
        taus.append(np.mean([np.sign((m[i] - m[j]) * (place[i] - place[j])) for i, j in pairs]))
    assert curves.order(peaks, m) == pytest.approx(np.mean(taus))
    assert curves.order(peaks, place) == pytest.approx(1)
    assert curves.order(Peaks(context, np.arange(12), {"measured": 0 * bumps}, {"measured": place}), m) is None


def test_probabilities_of_concepts_are_sums_over_tokens():
    rng = np.random.default_rng(2)
    p, concept = rng.dirichlet(np.ones(7), size=(3, 5)), np.asarray([0, 2, 1, 0, 1, 2, 2])
    sums = curves.of_concepts(np.log(p), concept, 3)
    for k in range(3):
        np.testing.assert_allclose(sums[..., k], p[..., concept == k].sum(axis=-1))


def test_a_sigmoid_is_found_again():
    y = 0.1 + 0.7 / (1 + np.exp(-(X - 1.5) / 0.4))
    law = curves.sigmoid(X, y)
    # A sigmoid is half a tanh, of twice the width.
    np.testing.assert_allclose(law[:4], [0.45, 0.35, 1 / (2 * 0.4), 1.5], rtol=1e-5)
    assert law.r_squared == pytest.approx(1)
    np.testing.assert_allclose(law(X), y, atol=1e-6)
    noisy = y + 0.05 * np.sin(40 * X)
    left = np.sum((noisy - curves.sigmoid(X, noisy)(X)) ** 2)
    assert curves.sigmoid(X, noisy).r_squared == pytest.approx(1 - left / np.sum((noisy - noisy.mean()) ** 2))


@pytest.mark.parametrize("law", [(0.4, 0.3, 0.2, 1.5), (0.5, -0.4, 1.0, -2.0), (0.6, 0.1, 5.0, 0.3)])
def test_a_tanh_is_found_again(law):
    alphas = np.linspace(-20, 20, 41)
    curve = Sigmoid(*law)(alphas)
    np.testing.assert_allclose(curve, law[0] + law[1] * np.tanh(law[2] * (alphas - law[3])))
    for fit in (curves.sigmoid(alphas, curve), curves.sigmoid(alphas, curve, Sigmoid(*law)._replace(centre=0.0))):
        assert fit.r_squared == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(fit(alphas), curve, atol=1e-3)


def test_a_bump_is_no_sigmoid():
    alphas = np.linspace(-10, 10, 21)
    assert curves.sigmoid(alphas, np.exp(-(alphas**2) / 20)).r_squared < 0.6


def test_the_mean_order_leaves_out_contexts_without_one():
    odds, places = np.asarray([1.0, 2.0, 3.0]), np.asarray([-1.0, 0.0, 4.0])
    flat = np.ones(3)
    assert curves.mean_tau([(odds, places), (odds, -places), (odds, places), (odds, flat)]) == pytest.approx(1 / 3)
    assert np.isnan(curves.mean_tau([(odds[:1], places[:1]), (flat, places)]))


def test_bad_input():
    with pytest.raises(ValueError, match="alphas: expected strengths in increasing order"):
        curves.peaks({"measured": made([0.0])}, X[::-1], 1)
    with pytest.raises(ValueError, match=r"^curves: .*3 strengths"):
        curves.peaks({"measured": made([0.0])}, X[:3], 1)
    with pytest.raises(ValueError, match="x: expected at least 5 points"):
        curves.sigmoid(X[:4], X[:4])
    with pytest.raises(ValueError, match="y: expected a curve that changes"):
        curves.sigmoid(X, np.ones_like(X))
