"""Counting bumps by alternating slopes, against the count that `theory.arc` reads off the signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import arc, norms, routes
from theory.statements import n22_bumps


def test_alternation_is_positive_as_often_as_a_curve_has_bumps():
    x = np.linspace(0, 1, 400)
    slopes = jnp.asarray(np.stack([np.cos(2 * np.pi * 3 * x), -np.cos(2 * np.pi * 3 * x), 1 + 0 * x], axis=1))
    counts = [sum(bool(n22_bumps.alternation(slopes, k)[column] > 0) for k in range(1, 6)) for column in range(3)]
    assert counts == [3, 3, 0]
    # As clearly as the slopes say, at most.
    assert n22_bumps.alternation(slopes, 3)[0] == pytest.approx(1, abs=1e-3)


def test_the_margin_agrees_with_counted_bumps():
    paths = routes.populate(jax.random.key(0), 200, n22_bumps.arcs_of(5))
    counted = jax.vmap(lambda instance: jnp.max(arc.bumps(instance.arc)))(paths)
    assert set(range(1, 3)) <= set(counted.tolist())
    for most in range(4):
        margins = jax.vmap(n22_bumps.at_most(most))(paths)
        # The grid of the margin is coarser: it may miss bumps, and sees none that are not there.
        assert (counted[margins < 0] > most).all()
        assert ((margins < 0) == (counted > most)).mean() > 0.97


def test_two_bumps_are_attained():
    assert arc.bumps(n22_bumps.two_bumps().arc).max() == 2
    assert n22_bumps.at_most(1)(n22_bumps.two_bumps()) < 0 < n22_bumps.at_most(2)(n22_bumps.two_bumps())
    assert n22_bumps.at_most(3)(norms.spread_out()) < 0 < n22_bumps.at_most(4)(norms.spread_out())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: n22_bumps.at_most(-1), "bumps: expected a number of at least 0"),
        (lambda: n22_bumps.arcs_of(1), "tokens: expected at least two"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
