"""Effects of strengths that were not looked at: exact where predictions follow lines, and the root of a rough statistic."""

import numpy as np
import pytest

from sim.choosing.crossing import crossing
from sim.choosing.interpolation import effects_at, expected_root
from sim.choosing.rollouts import Effects


def p95(_alpha, effects):
    """The logarithm of the 95th percentile of KL: a budget of 1 nat."""
    return float(np.log(np.percentile(effects.kl, 95)))


@pytest.fixture
def powers():
    """Effects in which every prediction has its own power of the strength: KL, log-odds of a share, loss."""
    rng = np.random.default_rng(3)
    scale, power = rng.lognormal(-2, 1.2, (32, 50)), rng.uniform(0.8, 2.2, (32, 50))

    def at(alpha):
        kl = scale * alpha**power
        share = 1 / (1 + np.exp(5 - power * np.log(alpha)))
        return Effects(
            kl,
            kl / 2,
            3 + power * np.log(alpha),
            share,
            np.log(alpha) * power,
            np.ones(kl.shape, bool),
            np.full(len(kl), np.nan),
        )

    return at


@pytest.mark.parametrize("alpha", [0.7, 1.3, 2.9, 4.5])
def test_lines_are_followed_exactly(powers, alpha):
    got = effects_at(alpha, {strength: powers(strength) for strength in (1.0, 2.0, 4.0)})
    for name, expected in powers(alpha)._asdict().items():
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_what_was_looked_at_is_given_back_and_what_is_not_counted_stays_out(powers):
    looked_at = {strength: powers(strength) for strength in (1.0, 2.0)}
    for effects in looked_at.values():
        effects.kl[0, 0] = np.nan
    got = effects_at(2.0, looked_at)
    np.testing.assert_allclose(got.kl, looked_at[2.0].kl)
    assert np.isnan(got.kl[0, 0])


def test_predictions_that_do_not_move_have_no_logarithm(powers):
    looked_at = {
        strength: powers(strength)._replace(kl=np.zeros((32, 50)), share=np.ones((32, 50))) for strength in (1.0, 2.0)
    }
    got = effects_at(1.5, looked_at)
    assert got.kl.max() < 1e-11
    assert got.share.min() > 1 - 1e-11


def test_the_root_of_a_percentile(powers):
    truth = crossing(lambda alpha: p95(alpha, powers(alpha)), 1.0, tolerance=1e-6).alpha
    looked_at = {strength: powers(strength) for strength in (0.9 * truth, 0.96 * truth)}
    assert expected_root(p95, looked_at, 0.96 * truth, np.inf) == pytest.approx(truth, rel=1e-4)
    assert expected_root(p95, looked_at | {2 * truth: powers(2 * truth)}, 0.96 * truth, 2 * truth) == pytest.approx(
        truth, rel=1e-4
    )


def test_a_root_that_was_looked_at_is_told(powers):
    """Where the strength that was looked at last is the crossing to the last digit, it counts as above it."""
    looked_at = {strength: powers(strength) for strength in (1.5, 2.0)}
    assert expected_root(lambda alpha, _: np.log(alpha / 1.5), looked_at, 0.0, 1.5) == pytest.approx(1.5, rel=1e-5)


@pytest.mark.parametrize(
    "strengths", [[1.0], [], [1e-3, 2e-3], [1e3, 2e3]], ids=["one strength", "none", "far below", "far above"]
)
def test_a_root_that_is_not_near_is_not_told(powers, strengths):
    assert expected_root(p95, {strength: powers(strength) for strength in strengths}, 0.0, np.inf) is None


def test_strengths_without_numbers_are_left_out(powers):
    broken = powers(2.0)._replace(kl=np.full((32, 50), np.nan))
    assert expected_root(p95, {1.0: powers(1.0), 2.0: broken}, 1.0, np.inf) is None


def test_a_percentile_is_solved_in_fewer_evaluations_than_by_its_secant(powers):
    """Where the secant of a rough statistic needs three or four, two strengths tell the root."""
    truth = crossing(lambda alpha: p95(alpha, powers(alpha)), 1.0, tolerance=1e-6).alpha
    counts = []
    for start in np.linspace(0.85, 1.15, 13) * truth:
        looked_at = {}

        def excess(alpha, looked_at=looked_at):
            looked_at.setdefault(alpha, powers(alpha))
            return p95(alpha, looked_at[alpha])

        def expected(low, high, looked_at=looked_at):
            return expected_root(p95, looked_at, low, high)

        result = crossing(excess, float(start), steepness=1.4, expected=expected)
        assert result.alpha == pytest.approx(truth, rel=0.0101)
        counts.append(result.evaluations)
    assert max(counts) <= 3


@pytest.mark.parametrize("start", [0.9, 1.9, 2.9, 4.0])
def test_lines_do_not_hide_a_jump(powers, start):
    """Between two strengths that are on its sides, a jump is nowhere near where lines cross."""
    looked_at = {}

    def excess(alpha):
        scale = np.where(alpha < 3, 0.1, 30)
        looked_at.setdefault(alpha, powers(1.0)._replace(kl=np.full((32, 50), scale)))
        return p95(alpha, looked_at[alpha])

    result = crossing(excess, start, expected=lambda low, high: expected_root(p95, looked_at, low, high))
    assert result.alpha < 3
    assert result.alpha == pytest.approx(3, rel=0.011)
    assert result.evaluations <= 24
