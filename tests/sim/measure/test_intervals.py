"""Intervals: against scipy, against published examples, and by how often they hold what is estimated."""

import numpy as np
import pytest
from scipy import stats

from sim.measure import intervals


@pytest.mark.parametrize(("hits", "n"), [(0, 4), (4, 4), (1, 4), (7, 40), (39, 40)])
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_a_share_has_the_interval_of_wilson(hits, n, level):
    estimate = intervals.share([1.0] * hits + [0.0] * (n - hits) + [np.nan], level)
    expected = stats.binomtest(hits, n).proportion_ci(level, "wilson")
    np.testing.assert_allclose(estimate, (hits / n, expected.low, expected.high), atol=1e-12)
    assert estimate.low < estimate.high


def test_a_mean_has_the_interval_of_student():
    values = np.random.default_rng(0).normal(size=5)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(intervals.mean([*values, np.nan, np.inf]), (values.mean(), expected.low, expected.high))


@pytest.mark.parametrize("function", [intervals.mean, intervals.share, intervals.paired_difference])
def test_no_values_have_no_mean(function):
    assert np.isnan(function([np.nan])).all()
    assert np.isnan(function([])).all()


def test_one_value_has_no_interval():
    assert intervals.mean([0.3])[0] == 0.3
    assert np.isnan(intervals.mean([0.3])[1:]).all()
    assert np.isnan(intervals.ratio(np.array([2.0]), np.array([1.0]))[1:]).all()


@pytest.mark.parametrize(
    ("second", "first", "low", "high"),
    # The examples of the paper.
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_a_difference_of_shares_has_the_interval_of_newcombe(second, first, low, high):
    ones = [np.repeat([1.0, 0.0], [hits, n - hits]) for hits, n in (first, second)]
    estimate = intervals.difference(*ones)
    np.testing.assert_allclose(estimate[1:], (low, high), atol=5e-5)
    assert estimate.value == pytest.approx(second[0] / second[1] - first[0] / first[1])


def test_paired_differences_have_the_interval_of_the_table_with_a_half_in_each_cell():
    both, gained, lost, neither = 53, 16, 8, 9
    values = np.repeat([0.0, 1.0, -1.0, 0.0], [both, gained, lost, neither])
    n, up, down = values.size + 2, gained + 0.5, lost + 0.5
    half = stats.norm.ppf(0.975) * np.sqrt((up + down) - (up - down) ** 2 / n) / n
    estimate = intervals.paired_difference(values)
    np.testing.assert_allclose(estimate, ((gained - lost) / values.size, (up - down) / n - half, (up - down) / n + half))
    alike = intervals.paired_difference(np.zeros(4))
    assert alike.low < -0.3 < 0.3 < alike.high


def test_auc_is_the_chance_of_the_right_order_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 1.0, 300)
    counted = np.mean([(p > q) + (p == q) / 2 for p in positive for q in negative])
    assert intervals.auc(positive, negative).value == pytest.approx(counted)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    draws = [intervals.auc(rng.normal(1.0, 1.0, 12), rng.normal(0.0, 1.0, 9)) for _ in range(1000)]
    assert 0.92 <= np.mean([draw.low <= truth <= draw.high for draw in draws]) <= 0.985


def test_two_texts_on_either_side_do_not_show_that_a_measure_tells_them_apart():
    apart = intervals.auc(np.array([1.0, 2.0]), np.array([0.0, -1.0]))
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert apart.low < 0.5
    assert intervals.auc(np.zeros(3), np.ones(2))[:2] == (0.0, 0.0)


def test_ratios_of_means_and_their_intervals():
    rng = np.random.default_rng(1)
    below = rng.uniform(1, 3, 2000)
    above = 1.5 * below + rng.normal(0, 0.2, 2000)
    value, low, high = intervals.ratio(above, below)
    assert low < 1.5 < high
    assert value - low == pytest.approx(high - value)
    assert high - value == pytest.approx(1.96 * 0.2 / np.sqrt(2000) / 2, rel=0.1)
