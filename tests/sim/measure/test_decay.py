"""Fits of validity decay: planted curves are found again, N7's law is one, errors are those of refits."""

import numpy as np
import pytest
from scipy.optimize import brentq, least_squares

from sim.measure.decay import Decay, Side, _described, _posed, _spread, fit_preference, fit_utility

ALPHAS = np.linspace(-10, 10, 41)
BELOW, ABOVE = Side(-1.5, 3.0, 0.8), Side(2.0, 2.5, 1.4)
PLANTED = {
    "preference": Decay(0.7, 1.2, -0.4, BELOW, ABOVE, {}, 1.0, 0.0, 41),
    "utility": Decay(0.0, 2.5, -5.0, BELOW, ABOVE, {}, 1.0, 0.0, 41),
}
FITS = {"preference": fit_preference, "utility": fit_utility}


def by_hand(alphas, side):
    """D as it is written."""
    return ((1 + (alphas - side.centre) ** 2 / side.width**2) / (1 + side.centre**2 / side.width**2)) ** -side.exponent


def law(seed, d=12):
    """A preference behind an RMSNorm at strengths `ALPHAS`, with N7's centre and width."""
    rng = np.random.default_rng(seed)
    h, v, u = 4 * rng.normal(size=d), rng.normal(size=d), rng.normal(size=(2, d))
    states = h + ALPHAS[:, None] * v
    logits = np.sqrt(d) * (states / np.linalg.norm(states, axis=1, keepdims=True)) @ u.T
    squared = v @ v
    return logits[:, 0] - logits[:, 1], -h @ v / squared, np.sqrt((h @ h) * squared - (h @ v) ** 2) / squared


def test_the_curve_is_as_written():
    for decay in PLANTED.values():
        d = np.where(ALPHAS >= 0, by_hand(ALPHAS, ABOVE), by_hand(ALPHAS, BELOW))
        np.testing.assert_allclose(decay.validity(ALPHAS), d, rtol=1e-12)
        np.testing.assert_allclose(decay(ALPHAS), (decay.slope * ALPHAS + decay.beta) * d + decay.b, rtol=1e-12)


def test_validity_is_1_at_0_from_both_sides():
    decay = PLANTED["preference"]
    assert decay.validity(np.zeros(1))[0] == 1
    np.testing.assert_allclose(decay.validity(np.array([-1e-9, 1e-9])), 1, atol=1e-8)


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("unit", [1.0, 1e-3, 40.0])
def test_planted_numbers_are_found(kind, unit):
    decay = PLANTED[kind]
    fit = FITS[kind](unit * ALPHAS, decay(ALPHAS))
    for name, value in decay.parameters.items():
        scaled = value * (unit if name.endswith(("centre", "width")) else 1 / unit if name == "slope" else 1)
        assert fit.parameters[name] == pytest.approx(scaled, rel=1e-5), name
    assert fit.r_squared == pytest.approx(1, abs=1e-12)
    assert fit.residual < 1e-8
    assert fit.points == 41
    np.testing.assert_allclose(fit(unit * ALPHAS), decay(ALPHAS), atol=1e-7)


def test_sides_may_have_other_scales():
    alphas = np.concatenate([np.linspace(-80, 0, 20, endpoint=False), np.linspace(0, 4, 21)])
    decay = Decay(0.5, 2.0, 1.0, Side(5.0, 20.0, 0.6), Side(0.5, 1.5, 1.1), {}, 1.0, 0.0, 41)
    fit = fit_preference(alphas, decay(alphas))
    np.testing.assert_allclose([*fit.below, *fit.above], [*decay.below, *decay.above], rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_law_of_a_norm_is_one_piece_of_exponent_one_half(seed):
    y, centre, width = law(seed)
    fit = fit_preference(ALPHAS, y, one_piece=True)
    assert fit.below == fit.above
    np.testing.assert_allclose(fit.above, [centre, width, 0.5], rtol=1e-4, atol=1e-6)
    held = fit_preference(ALPHAS, y, one_piece=True, exponent=0.5)
    np.testing.assert_allclose(held.above, [centre, width, 0.5], rtol=1e-6, atol=1e-8)
    assert np.isnan(held.errors["above.exponent"])
    assert np.isfinite(held.errors["above.width"])


def test_two_pieces_hold_the_law_as_well():
    y, centre, width = law(1)
    fit = fit_preference(ALPHAS, y)
    np.testing.assert_allclose(fit.above, [centre, width, 0.5], rtol=1e-2)
    np.testing.assert_allclose(fit.below, [centre, width, 0.5], rtol=1e-2)


def test_a_wrong_exponent_fits_worse():
    y, _, _ = law(2)
    assert fit_preference(ALPHAS, y, one_piece=True, exponent=2.0).residual > 1e-3


def crooked():
    """A sweep of a language model, whose nearest curve is off by hundreds of thousands between two points."""
    outer = [0.4811, 0.5226, 0.4458, 0.3721, 0.3065, 0.1926, 0.1875, 0.1514, 0.1362, 0.1008, 0.1047, 0.1695]
    inner = [0.2575, 0.3253, 0.3684, 0.3932, 0.4035, 0.4023, 0.3903, 0.3695, 0.3402, 0.2995, 0.2585, 0.2463, 0.26]
    return 40 * np.sinh(np.linspace(-2, 2, 25)) / np.sinh(2), np.asarray(outer + inner)


def keeps_near(curve, y):
    return y.min() - np.ptp(y) <= curve.min() and curve.max() <= y.max() + np.ptp(y)


def test_a_curve_does_not_go_through_points_by_way_of_infinity():
    alphas, y = crooked()
    fit = fit_preference(alphas, y)
    assert keeps_near(fit(np.linspace(-40, 40, 4001)), y)
    assert fit.r_squared > 0.97


@pytest.mark.parametrize("seed", range(3))
def test_no_curve_from_a_random_start_is_nearer(seed):
    """Fits of all numbers at once, from many places, of a sweep that has many curves nearer than their neighbours."""
    (alphas, y), rng = crooked(), np.random.default_rng(seed)
    y = y + rng.normal(0, 0.01, alphas.size)
    x, fine = alphas / 40, np.linspace(-1, 1, 4001)

    def curve(q, x):
        below, above = (Side(side[0], np.exp(side[1]), np.exp(side[2])) for side in (q[3:6], q[6:]))
        return (q[0] * x + q[1]) * np.where(x >= 0, by_hand(x, above), by_hand(x, below)) + q[2]

    ends = np.array([(-3, 3), np.log((1e-3, 30)), np.log((0.02, 20))] * 2)
    best = np.inf
    for _ in range(25):
        q = np.concatenate([rng.normal(size=3), rng.uniform(*ends.T)])
        low, high = (np.concatenate([sign * np.full(3, np.inf), ends[:, k]]) for k, sign in ((0, -1), (1, 1)))
        solution = least_squares(lambda q: curve(q, x) - y, q, bounds=(low, high), x_scale="jac", max_nfev=200)
        if keeps_near(curve(solution.x, fine), y):
            best = min(best, 2 * solution.cost)
    fit = fit_preference(alphas, y)
    assert alphas.size * fit.residual**2 <= best * (1 + 1e-3)


def test_r_squared_is_that_of_the_points():
    rng = np.random.default_rng(5)
    y = PLANTED["utility"](ALPHAS) + rng.normal(0, 0.5, ALPHAS.size)
    fit = fit_utility(ALPHAS, y)
    left = y - fit(ALPHAS)
    assert fit.r_squared == pytest.approx(1 - np.sum(left**2) / np.sum((y - y.mean()) ** 2))
    assert fit.residual == pytest.approx(np.sqrt(np.mean(left**2)))
    assert fit.r_squared > 0.8
    nothing = fit_utility(ALPHAS, rng.normal(size=ALPHAS.size), one_piece=True)
    assert nothing.r_squared < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", FITS)
def test_errors_are_those_of_refits(kind):
    rng = np.random.default_rng(6)
    decay = Decay(
        0.7 if kind == "preference" else 0.0, 3.0, -1.0, Side(1.0, 3.0, 1.0), Side(1.0, 3.0, 1.0), {}, 1.0, 0.0, 41
    )
    fits = [FITS[kind](ALPHAS, decay(ALPHAS) + rng.normal(0, 0.02, ALPHAS.size), one_piece=True) for _ in range(60)]
    for name in fits[0].errors:
        if name == "slope" and kind == "utility":
            assert all(np.isnan(fit.errors[name]) for fit in fits)
            continue
        spread = np.std([fit.parameters[name] for fit in fits], ddof=1)
        told = np.median([fit.errors[name] for fit in fits])
        assert told == pytest.approx(spread, rel=0.4), name


@pytest.mark.parametrize("part", [0.3, 0.03, 0.003])
def test_a_number_with_a_small_part_in_what_is_undetermined_has_no_error(part):
    x, y, alone = np.random.default_rng(0).normal(size=(3, 40))
    jacobian = np.stack([x, y, part * x + y, alone], axis=1)
    assert np.isnan(_spread(jacobian)).tolist() == [True, True, True, False]


def test_no_error_is_told_where_data_do_not_determine_a_number():
    # Straight but for two points: D is 1 for whatever width and exponent that are large enough together.
    fit = fit_preference(ALPHAS, 0.3 * ALPHAS + 1.0, one_piece=True)
    assert fit.r_squared == pytest.approx(1, abs=1e-6)
    assert np.isnan(fit.errors["above.width"]) or np.isnan(fit.errors["above.exponent"])
    # Two strengths say nothing of three numbers, whatever the other side says of its own.
    alphas = np.concatenate([ALPHAS[:20], [3.0, 6.0]])
    for seed in range(5, 11):
        # Which of the curves that are equally near is found, rounding decides; so do many seeds.
        fit = fit_utility(alphas, PLANTED["utility"](alphas) + np.random.default_rng(seed).normal(0, 0.01, 22))
        unknown = [np.isnan(fit.errors[f"{side}.{name}"]) for side in ("below", "above") for name in Side._fields]
        assert unknown == 3 * [False] + 3 * [True], seed
    few = np.linspace(-2, 2, 5)
    exact = fit_utility(few, np.array([0.1, 0.7, 1.0, 0.5, 0.3]), one_piece=True)
    assert all(np.isnan(error) for error in exact.errors.values())


@pytest.mark.parametrize("exponent", [3.0, 20.0])
def test_a_bound_does_not_make_up_for_missing_data(exponent):
    """Two strengths above 0, and a curve of the many that are equally near: within the bounds, or at one."""
    alphas = np.concatenate([ALPHAS[:20], [3.0, 6.0]])
    y = PLANTED["utility"](alphas) + np.random.default_rng(0).normal(0, 0.01, 22)
    sides = [(0.3, np.log(0.5), np.log(0.8)), (0.4, np.log(2.0), np.log(exponent))]
    errors = _described(_posed(alphas, y, False, False, None), np.ravel(sides)).errors
    unknown = [np.isnan(errors[f"{side}.{name}"]) for side in ("below", "above") for name in Side._fields]
    assert unknown == 3 * [False] + 3 * [True]


@pytest.mark.parametrize("side", [ABOVE, Side(-4.0, 0.3, 0.3), Side(0.0, 2.0, 5.0), Side(-300.0, 2.0, 1.0)])
def test_half_is_where_validity_is_one_half(side):
    decay = Decay(0.0, 1.0, 0.0, Side(-side.centre, side.width, side.exponent), side, {}, 1.0, 0.0, 0)
    place = brentq(lambda x: decay.validity(np.array([x]))[0] - 0.5, 0, 1e6, xtol=1e-12, rtol=1e-14)
    assert decay.half(1) == pytest.approx(place, rel=1e-9)
    assert decay.half(-1) == pytest.approx(-place, rel=1e-9)


def test_half_may_be_beyond_all_numbers_or_unknown():
    flat = Side(0.0, 1.0, 1e-4)
    decay = Decay(0.0, 1.0, 0.0, flat, Side(float("nan"), 1.0, 1.0), {}, 1.0, 0.0, 0)
    assert decay.half(-1) == -np.inf
    assert np.isnan(decay.half(1))
    with pytest.raises(ValueError, match="sign: expected 1 or -1, got 0"):
        decay.half(0)


@pytest.mark.parametrize("fit", FITS.values())
def test_bad_input(fit):
    y = PLANTED["preference"](ALPHAS)
    holes = np.where(ALPHAS == 0, np.nan, y)
    with pytest.raises(ValueError, match=r"^y: .*got nan at index"):
        fit(ALPHAS, holes)
    with pytest.raises(ValueError, match="alphas: expected finite numbers, got inf"):
        fit(np.where(ALPHAS == 10, np.inf, ALPHAS), y)
    with pytest.raises(ValueError, match=r"^alphas: .*below 0 and above"):
        fit(np.abs(ALPHAS) + 0.1 * (ALPHAS < 0), y)
    with pytest.raises(ValueError, match=r"alphas: expected at least \d distinct strengths"):
        fit(ALPHAS[17:23], y[17:23])
    with pytest.raises(ValueError, match=r"alphas: expected at least \d distinct strengths"):
        fit(np.sign(ALPHAS), y)
    with pytest.raises(ValueError, match="y: expected a curve that changes"):
        fit(ALPHAS, np.ones(ALPHAS.size))
    with pytest.raises(ValueError, match=r"exponent: .*got 0"):
        fit(ALPHAS, y, exponent=0.0)
    assert fit(ALPHAS[20:], y[20:], one_piece=True).points == 21
