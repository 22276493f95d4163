"""Criteria, each against its definition by hand."""

from fractions import Fraction

import numpy as np
import pytest

from sim.choosing.criteria import KLBudget, LossRise, NormRatio, Rising, ShareAtLeast, Situation, statistic
from sim.choosing.rollouts import Effects

COUNTED = np.array([[True, True, False], [True, False, False]])


def values(*numbers):
    array = np.full((2, 3), np.nan)
    array[COUNTED] = numbers
    return array


EFFECTS = Effects(
    kl=values(0.1, 0.4, 1.0),
    reverse_kl=values(0.2, 0.3, 0.7),
    loss=values(2.0, 3.0, 4.0),
    share=values(0.1, 0.2, 0.3),
    share_slope=values(0.02, -0.01, 0.05),
    counted=COUNTED,
    shown=np.array([0.25, 0.5]),
)
HERE = Situation(EFFECTS, alpha=2.0, relative=0.25, base_loss=2.0)


def test_statistics_pass_over_what_is_not_counted():
    assert statistic(EFFECTS.kl, "mean") == pytest.approx(0.5)
    assert statistic(EFFECTS.kl, "max") == 1.0
    assert statistic(EFFECTS.kl, "p95") == pytest.approx(np.quantile([0.1, 0.4, 1.0], 0.95))
    with pytest.raises(ValueError, match=r"statistic: expected one of p95, mean, max"):
        statistic(EFFECTS.kl, "median")


def test_each_criterion_is_its_definition():
    assert KLBudget(0.25, "mean").excess(HERE) == pytest.approx(np.log(2))
    assert KLBudget(0.7, "max", reverse=True).excess(HERE) == pytest.approx(0)
    assert LossRise(0.2).excess(HERE) == pytest.approx(np.log(3.0 / 2.4))
    assert NormRatio(0.5).excess(HERE) == pytest.approx(np.log(0.5))
    assert Rising().excess(HERE) == pytest.approx(-10 * 0.02 * 2 / 0.2)
    assert ShareAtLeast(0.2).excess(HERE) == pytest.approx(0)
    assert ShareAtLeast(0.5).excess(HERE) == pytest.approx(np.log(0.2 / 0.8))


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("criterion", [KLBudget, LossRise, NormRatio, ShareAtLeast])
def test_limits_are_floats_whatever_number_they_are_given_as(criterion):
    value = next(iter(vars(criterion(Fraction(1, 4))).values()))
    assert type(value) is float
    assert value == 0.25


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: KLBudget(0.0), "budget"),
        (lambda: KLBudget(-1.0), "budget"),
        (lambda: KLBudget(float("nan")), "budget"),
        (lambda: KLBudget(1.0, "p99"), "statistic"),
        (lambda: LossRise(0.0), "loss_rise"),
        (lambda: NormRatio(-0.1), "norm_ratio"),
        (lambda: ShareAtLeast(1.0), "share"),
        (lambda: ShareAtLeast(0.0), "share"),
        (lambda: NormRatio(1.0).excess(Situation(EFFECTS, 1.0)), "norm_ratio"),
    ],
)
def test_limits_that_are_none_are_refused(make, argument):
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        make()
