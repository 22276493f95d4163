"""Roots of functions of a logarithm: found, not found, in few evaluations."""

import numpy as np
import pytest

from sim.choosing.crossing import crossing


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


def test_what_is_never_reached_is_said():
    result = crossing(lambda alpha: -0.5 - 1 / (1 + alpha), 1.0, most=1000.0)
    assert result.alpha is None
    assert result.low == 1000.0


def test_no_strength_is_good():
    result = crossing(lambda alpha: 1.0, 1.0, evaluations=10)
    assert result.alpha is None
    assert result.low == 0
