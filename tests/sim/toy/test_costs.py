"""What steering costs in the toy: trained models against closed forms, bounds against what is measured, slopes and turns."""

import jax
import numpy as np
import pytest

from sim.checks.verify import train_examples
from sim.figures.costs import COSTS_FIGURES
from sim.toy import costs, texts, turns


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        trained = train_examples(0, ["toy"])["toy"]
        return costs.run(trained) | {"texts": texts.run(), "turns": turns.run()}


def test_models_cost_what_is_predicted_and_no_less_than_anything_could(data):
    curves = data["share-costs"]
    np.testing.assert_allclose(curves["measured_share"], curves["share"], atol=1e-9)
    np.testing.assert_allclose(curves["measured_cost"], curves["cost"], atol=1e-9)
    f0, f1 = curves.attrs["before"], curves["share"].values[:, 1:]
    least = f0 * np.log(f0 / f1) + (1 - f0) * np.log((1 - f0) / (1 - f1))
    assert (curves["cost"].values[:, 1:] >= least - 1e-15).all()
    # To second order a direction costs its least over its efficiency.
    np.testing.assert_allclose(least[:, 0] / curves["cost"].values[:, 1], curves["efficiency"], rtol=0.02)


def test_efficiency_is_that_of_a_small_strength(data):
    np.testing.assert_allclose(data["efficiencies"]["measured"], data["efficiencies"]["predicted"], rtol=1e-4)


def test_bounds_lie_below_what_is_measured(data):
    safe = data["safe-strengths"]
    np.testing.assert_allclose(safe["measured"], safe["exact"], rtol=1e-7)
    for name in ("N4", "N18", "N20"):
        assert (safe[name] <= safe["exact"] * (1 + 1e-9)).all(), name


def test_texts_respond_as_many_steps_add_up(data):
    curves = data["texts"]
    np.testing.assert_allclose(curves["measured"], curves["predicted"], atol=1e-5)
    np.testing.assert_allclose(curves["slope"], curves["amplification"], rtol=1e-9)
    middle = curves.sizes["alpha"] // 2
    rise = curves["measured"].values[:, middle + 1] - curves["measured"].values[:, middle - 1]
    np.testing.assert_allclose(rise / rise[0], curves["amplification"], rtol=0.03)


def test_shares_turn_once_less_than_membership_changes(data):
    curves = data["turns"]
    np.testing.assert_allclose(curves["measured"], curves["predicted"], atol=1e-3)
    assert curves["changes"].values.tolist() == [1, 2, 3, 4, 5]
    assert curves["turns"].values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", COSTS_FIGURES)
def test_each_is_drawn(data, name):
    drawing = COSTS_FIGURES[name]
    figure = drawing.draw(data[drawing.dataset])
    assert all(axes.get_lines() for axes in figure.axes)
    assert figure.axes[-1].get_xlabel()
