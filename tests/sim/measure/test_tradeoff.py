"""From losses to curves and to what is gained for what is lost, against numbers worked out by hand."""

import numpy as np
import pytest
import xarray as xr

from sim.measure import tradeoff
from sim.measure.decay import Decay, Side

ALPHA = np.array([-1.0, 0.0, 2.0])


def losses_of(values, alpha=ALPHA):
    """Losses ``[strength, pair, side]`` of one concept and update."""
    return xr.Dataset(
        {
            "loss": (("concept", "update", "strength", "pair", "side"), np.asarray(values, float)[None, None]),
            "alpha": (("update", "strength"), np.asarray(alpha)[None]),
        },
        coords={"concept": ["joy"], "update": ["split vector"], "side": ["matching", "not_matching"]},
    )


def by_hand(p, n):
    """Utility as it is written."""
    both = np.exp(-p) + np.exp(-n)
    return np.log(both / (1 - both))


def test_means_over_pairs():
    values = [[[2.0, 3.0], [1.0, 1.5]], [[2.0, 2.0], [1.5, 3.0]], [[4.0, 5.0], [2.0, 6.0]]]
    means = tradeoff.averages(losses_of(values)).sel(concept="joy", update="split vector")
    np.testing.assert_allclose(means["preference"], [0.75, 0.75, 2.5])
    np.testing.assert_allclose(means["preference_error"], [0.25, 0.75, 1.5])
    expected = [[by_hand(*pair) for pair in row] for row in values]
    np.testing.assert_allclose(means["utility"], np.mean(expected, axis=1))
    np.testing.assert_allclose(means["utility_error"], np.std(expected, axis=1, ddof=1) / np.sqrt(2))
    assert (int(means["pairs"]), int(means["pairs_used"])) == (2, 2)
    assert means["undefined"].values.tolist() == [0, 0, 0]
    assert means["alpha"].values.tolist() == ALPHA.tolist()


def test_sides_are_told_by_their_labels():
    values = np.array([[[2.0, 3.0]], [[2.0, 2.5]], [[4.0, 7.0]]])
    losses = losses_of(values)
    turned = losses.isel(side=[1, 0]).transpose("pair", "side", "strength", "update", "concept")
    xr.testing.assert_identical(tradeoff.averages(turned), tradeoff.averages(losses))
    assert tradeoff.averages(losses)["preference"].values.ravel().tolist() == [1.0, 0.5, 3.0]


def test_pairs_without_utility_are_counted_and_left_out_at_every_strength():
    # e^-0.5 + e^-0.6 is above 1.
    values = [
        [[2.0, 3.0], [1.0, 1.5], [2.0, 2.0]],
        [[2.0, 2.0], [0.5, 0.6], [2.0, 2.0]],
        [[4.0, 5.0], [2.0, 6.0], [3.0, 9.0]],
    ]
    means = tradeoff.averages(losses_of(values)).sel(concept="joy", update="split vector")
    assert means["undefined"].values.tolist() == [0, 1, 0]
    assert (int(means["pairs"]), int(means["pairs_used"])) == (3, 2)
    np.testing.assert_allclose(means["utility"], [np.mean([by_hand(*row[k]) for k in (0, 2)]) for row in values])
    np.testing.assert_allclose(means["preference"], [0.5, (0 + 0.1 + 0) / 3, (1 + 4 + 6) / 3])
    np.testing.assert_allclose(means["preference_used"], [0.5, 0, (1 + 6) / 2])
    fitted = tradeoff.with_fits(tradeoff.averages(losses_of(values))).sel(concept="joy", update="split vector")
    gained = tradeoff.area(np.array([0, 3.5]), means["utility"].values[1:] - float(means["utility"][1]))
    np.testing.assert_allclose(fitted["area"], gained)
    assert float(fitted["best_gain"]) == pytest.approx((11 - 0.1) / 3)


def test_pairs_that_are_not_computed_do_not_count():
    values = [[[2.0, 3.0], [1.0, 1.5]], [[2.0, 2.0], [1.5, np.nan]], [[4.0, 5.0], [2.0, 6.0]]]
    means = tradeoff.averages(losses_of(values)).sel(concept="joy", update="split vector")
    assert (int(means["pairs"]), int(means["pairs_used"])) == (1, 1)
    np.testing.assert_allclose(means["preference"], [1, 0, 1])
    assert np.isnan(means["preference_error"]).all()
    none = tradeoff.averages(losses_of(np.full((3, 2, 2), np.nan))).sel(concept="joy", update="split vector")
    assert np.isnan(none["preference"]).all()
    assert np.isnan(none["utility"]).all()
    assert int(none["pairs"]) == 0


@pytest.mark.parametrize(("p", "n"), [(0.0, 800.0), (0.3, 0.3), (np.log(2), np.log(2))])
def test_utility_is_not_clamped_where_it_is_undefined(p, n):
    means = tradeoff.averages(losses_of([[[p, n]]] * 3))
    assert np.isnan(means["utility"]).all()
    assert means["undefined"].values.tolist() == [[[1, 1, 1]]]


def test_utility_is_exact_where_the_answers_are_all_but_certain_or_impossible():
    close = tradeoff.averages(losses_of([[[1e-12, 800.0]]] * 3))["utility"].values
    np.testing.assert_allclose(close, np.log(1e12), rtol=1e-9)
    far = tradeoff.averages(losses_of([[[900.0, 900.0]]] * 3))["utility"].values
    np.testing.assert_allclose(far, np.log(2) - 900)


def test_the_best_gain_is_had_before_the_path_turns():
    # Up to 4 at a loss of 1, back to 2 at 2, and up to 6 at 3.
    gain, change = np.array([0.0, 4.0, 2.0, 6.0]), -np.array([0.0, 1.0, 2.0, 3.0])
    allowed = np.array([0.0, 0.5, 1.0, 2.0, 2.5, 2.75, 3.0, 9.0])
    assert tradeoff.frontier(gain, change, allowed).tolist() == [0, 2, 4, 4, 4, 5, 6, 6]
    # A triangle, a rectangle, and a trapezium: the last rise begins to count at 2.5.
    assert tradeoff.area(gain, change, 1.0) == pytest.approx(2)
    assert tradeoff.area(gain, change, 2.5) == pytest.approx((2 + 4 * 1.5) / 2.5)
    assert tradeoff.area(gain, change, 4.0) == pytest.approx((2 + 4 * 1.5 + 2.5 + 6) / 4)


def test_a_path_may_come_back_to_a_smaller_loss():
    # The gain of 6 at a loss of 0.5 is reached through a loss of 3.
    gain, change = np.array([0.0, 1.0, 6.0]), -np.array([0.0, 3.0, 0.5])
    best = tradeoff.frontier(gain, change, np.array([0.25, 0.5, 1.0]))
    assert best == pytest.approx([0.25 / 3, 6, 6])
    assert tradeoff.area(gain, change, 2.0) == pytest.approx((0.5 * 0.5 / 6 + 6 * 1.5) / 2)


def test_what_is_gained_for_nothing_counts_and_what_is_lost_does_not():
    assert tradeoff.area(np.array([0.0, 3.0]), np.array([0.0, 1.0]), 2.0) == pytest.approx(3)
    assert tradeoff.area(np.array([0.0, -3.0]), np.array([0.0, -1.0]), 2.0) == 0
    assert tradeoff.frontier(np.zeros(1), np.zeros(1), np.array([1.0])).tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_the_mean_of_the_frontier(seed):
    rng = np.random.default_rng(seed)
    gain, change = (np.concatenate([[0.0], np.cumsum(rng.normal(size=9))]) for _ in range(2))
    allowed = (np.arange(40000) + 0.5) / 20000
    assert tradeoff.area(gain, change, 2.0) == pytest.approx(tradeoff.frontier(gain, change, allowed).mean(), abs=2e-4)
    # And the frontier is the best of a fine walk along the path.
    steps = np.linspace(0, 9, 90001)
    walk, loss = (np.interp(steps, np.arange(10), path) for path in (gain, -change))
    for budget in (0.1, 0.7, 1.9):
        assert tradeoff.frontier(gain, change, np.array([budget]))[0] == pytest.approx(walk[loss <= budget].max(), abs=1e-3)


def test_the_same_gain_at_a_smaller_loss_has_a_larger_area():
    gain, loss = np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0])
    assert tradeoff.area(gain, -loss / 2) > tradeoff.area(gain, -loss)


def test_the_strength_that_spends_the_budget():
    alpha, change = np.array([0.0, 1.0, 3.0, 4.0]), -np.array([0.0, 0.5, 4.5, 1.0])
    assert tradeoff.spent(alpha, change, 2.5) == pytest.approx(2)
    assert np.isnan(tradeoff.spent(alpha, change, 5.0))


def planted():
    """Averages of three updates: exact curves, nothing for utility, nothing at all."""
    alpha = np.linspace(-8, 8, 33)
    preference = Decay(0.5, 1.0, 0.2, Side(-1.0, 3.0, 0.7), Side(1.0, 2.0, 0.9), {}, 1.0, 0.0, 33)
    utility = Decay(0.0, 4.0, -6.0, Side(-0.5, 3.0, 1.2), Side(0.5, 2.0, 0.6), {}, 1.0, 0.0, 33)
    nan = np.full(33, np.nan)
    curves = {"preference": [preference(alpha), preference(alpha), nan], "utility": [utility(alpha), nan, nan]}
    curves["preference_used"] = [preference(alpha), nan, nan]
    data = {name: (("concept", "update", "strength"), np.array(rows)[None]) for name, rows in curves.items()}
    counts = {name: (("concept", "update"), np.array([[5, 5, 0]])) for name in ("pairs", "pairs_used")}
    averages = xr.Dataset(
        data | counts | {"alpha": (("update", "strength"), np.tile(alpha, (3, 1)))},
        {"concept": ["joy"], "update": ["split vector", "sft lora", "reps weight"]},
    )
    return averages, preference, utility


@pytest.fixture(scope="module")
def fitted():
    return tradeoff.with_fits(planted()[0])


def test_fits_are_those_of_the_curves(fitted):
    _, preference, utility = planted()
    fit = fitted.sel(concept="joy", update="split vector")
    for name, curve in (("preference", preference), ("utility", utility)):
        assert float(fit[f"{name}_r_squared"]) == pytest.approx(1, abs=1e-9)
        np.testing.assert_allclose(fit[f"{name}_exponent"], [curve.below.exponent, curve.above.exponent], rtol=1e-4)
        np.testing.assert_allclose(fit[f"{name}_half"], [curve.half(-1), curve.half(1)], rtol=1e-4)
        np.testing.assert_allclose(fit[f"{name}_fit"], curve(fit["fine_alpha"].values), atol=1e-5)
    assert fit["fine_alpha"].values[::8].tolist() == fit["alpha"].values.tolist()


def test_gains_and_losses_are_since_strength_0(fitted):
    averages, preference, utility = planted()
    fit, above = fitted.sel(concept="joy", update="split vector"), np.linspace(0, 8, 17)
    gain, change = (curve(above) - curve(np.zeros(1)) for curve in (preference, utility))
    assert float(fit["best_gain"]) == pytest.approx(gain.max())
    assert float(fit["reached"]) == pytest.approx(-change.min())
    assert float(fit["area"]) == pytest.approx(tradeoff.area(gain, change, 2.0))
    place = float(fit["spent"])
    assert np.interp(place, above, change) == pytest.approx(-2)
    other = tradeoff.with_fits(averages.isel(update=[0]), budget=1.0).sel(concept="joy", update="split vector")
    assert float(other["area"]) == pytest.approx(tradeoff.area(gain, change, 1.0))
    assert other.attrs["budget"] == 1.0


def test_a_row_for_each_update_also_where_there_is_nothing(fitted):
    rows = tradeoff.table(fitted)
    assert [row["update"] for row in rows] == ["split vector", "sft lora", "reps weight"]
    assert [np.isnan(row["area"]) for row in rows] == [False, True, True]
    assert [np.isnan(row["preference_r_squared"]) for row in rows] == [False, False, True]
    assert rows[1]["best_gain"] == rows[0]["best_gain"]
    assert rows[0]["preference_half_above"] == pytest.approx(planted()[1].half(1), rel=1e-4)
    assert rows[0]["utility_exponent_below"] == pytest.approx(1.2, rel=1e-4)
    lines = tradeoff.as_text(rows).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("joy      split vector  5/5    1.000")
    assert "nan" in lines[3]


def test_a_half_beyond_the_sweep_is_said_to_be_there():
    row = {"least": -4.0, "largest": 4.0, "utility_half_below": -1e9, "utility_half_above": 3.217}
    assert tradeoff.halved(row, "utility", "below") == "< -4"
    assert tradeoff.halved(row, "utility", "above") == "3.22"
    assert tradeoff.halved(row | {"utility_half_above": np.inf}, "utility", "above") == "> 4"
    assert tradeoff.halved(row | {"utility_half_above": np.nan}, "utility", "above") == "nan"


def test_an_unfitted_table_is_fitted(fitted):
    assert tradeoff.table(planted()[0].isel(update=[0])) == tradeoff.table(fitted.isel(update=[0]))


def test_few_strengths_are_not_fitted_but_told():
    averages = tradeoff.averages(losses_of([[[2.0, 3.0]], [[2.0, 2.0]], [[4.0, 5.0]]]))
    (row,) = tradeoff.table(averages)
    assert np.isnan(row["preference_r_squared"])
    assert row["best_gain"] == 1
    assert row["spent"] == pytest.approx(2 * 2 / (by_hand(2, 2) - by_hand(4, 5)))


def test_bad_input():
    losses = losses_of(np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="side: expected"):
        tradeoff.averages(losses.assign_coords(side=["a", "b"]))
    with pytest.raises(ValueError, match="loss: expected dims"):
        tradeoff.averages(losses.isel(pair=0))
    with pytest.raises(ValueError, match="alpha: expected finite strengths in increasing order"):
        tradeoff.averages(losses.assign(alpha=-losses["alpha"]))
    with pytest.raises(ValueError, match="alpha: expected 0 among the strengths"):
        tradeoff.with_fits(tradeoff.averages(losses.assign(alpha=losses["alpha"] + 0.5)))
    with pytest.raises(ValueError, match="paths from 0"):
        tradeoff.area(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="budget: expected a positive number"):
        tradeoff.area(np.zeros(3), np.zeros(3), 0.0)
    with pytest.raises(ValueError, match="allowed: expected losses of 0 or more"):
        tradeoff.frontier(np.zeros(3), np.zeros(3), np.array([-1.0]))
