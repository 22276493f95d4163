"""Roots of functions of a logarithm: found, not found, in few evaluations."""

import numpy as np
import pytest

from sim.choosing.crossing import crossing, first_rise


@pytest.mark.parametrize("start", [1e-3, 0.5, 1.9, 2.1, 400.0])
def test_a_power_law_is_solved_at_once(start):
    result = crossing(lambda alpha: 2 * np.log(alpha / 2), start)
    assert result.alpha == pytest.approx(2, rel=0.011)
    assert result.evaluations <= 3 + abs(np.log(start / 2)) / np.log(8)


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("start", [0.02, 5.0])
def test_other_powers_and_bends(power, start):
    def bent(alpha):
        return power * np.log(alpha) + 0.5 * np.sin(np.log(alpha)) * (power > 0.6)

    result = crossing(bent, start)
    assert result.alpha == pytest.approx(1, rel=0.012)
    assert result.evaluations <= 12


def test_a_step_is_bracketed():
    result = crossing(lambda alpha: -1.0 if alpha < 3 else 4.0, 1.0)
    assert result.alpha < 3
    assert result.alpha == pytest.approx(3, rel=0.011)


def test_the_last_good_strength_is_kept_where_there_are_no_numbers_beyond():
    result = crossing(lambda alpha: np.log(alpha / 10) if alpha < 3 else np.nan, 1.0)
    assert result.alpha < 3
    assert result.alpha == pytest.approx(3, rel=0.011)


@pytest.mark.parametrize("start", [2.0, 5.0])
@pytest.mark.parametrize("tells", [False, True])
def test_a_crossing_that_is_met_exactly_is_a_solution(start, tells):
    """By lines that two strengths tell, or by values alone; at the start, or at a step."""
    looked_at = []

    def excess(alpha):
        looked_at.append(alpha)
        return 0.0 if abs(alpha - 2) < 1e-9 else float(np.log(alpha / 2))

    def expected(low, high):
        return 2.0 if len(set(looked_at)) > 1 else None

    result = crossing(excess, start, steepness=1.0, expected=expected if tells else None)
    assert result.alpha == pytest.approx(2, rel=0.011)
    assert result.evaluations <= 4


def test_what_is_never_reached_is_said():
    result = crossing(lambda alpha: -0.5 - 1 / (1 + alpha), 1.0, most=1000.0)
    assert result.alpha is None
    assert result.low == 1000.0


def test_no_strength_is_good():
    result = crossing(lambda alpha: 1.0, 1.0, evaluations=10)
    assert result.alpha is None
    assert result.low == 0


def test_the_first_of_two_crossings_is_found():
    """Above 0 between 1 and 4, and again from 100 on."""

    def excess(alpha):
        return np.log(alpha) * np.log(alpha / 4) * np.log(alpha / 100) / 10

    low, high = first_rise(excess, 0.1 * 2.0 ** np.arange(12))
    assert low < 1 < high < 4
    assert crossing(excess, high, between=(low, high)).alpha == pytest.approx(1, rel=0.011)


@pytest.mark.parametrize("top", np.geomspace(1.0, 2.0, 7))
def test_a_peak_between_rungs_is_found(top):
    """Above 0 in a part of a step only."""

    def excess(alpha):
        return 0.01 - np.log(alpha / top) ** 2

    rungs = 2.0 ** np.arange(-4, 5)
    assert max(map(excess, rungs)) < 0 or top in rungs
    low, high = first_rise(excess, rungs)
    assert excess(low) < 0 <= excess(high)
    assert high / low <= 2


def test_a_ladder_that_stays_below_has_no_crossing():
    asked = []
    assert first_rise(lambda alpha: asked.append(alpha) or -3 - np.log(alpha) ** 2, 2.0 ** np.arange(-4, 5)) is None
    assert len(asked) == 9
    assert first_rise(lambda alpha: np.nan if alpha > 2 else -1.0, 2.0 ** np.arange(9)) is None
    assert first_rise(lambda alpha: 1.0, [0.5, 1.0]) == (0.0, 0.5)
