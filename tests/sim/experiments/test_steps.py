"""Training in steps: interrupted and gone on with, and stopped when it diverges."""

import jax.numpy as jnp
import numpy as np
import pytest

from sim.experiments.steps import run_steps


def step(k, state):
    x, seen = state
    return (x - 0.1 * (x + k), seen + 1), jnp.sum(x**2)


START = (jnp.ones(3), jnp.zeros((), jnp.int32))


def test_it_is_a_loop(tmp_path):
    done = run_steps(tmp_path, START, step, 7, every=3, progress=False)
    x, losses = np.ones(3), []
    for k in range(7):
        losses.append((x**2).sum())
        x = x - 0.1 * (x + k)
    np.testing.assert_allclose(done.state[0], x, rtol=1e-6)
    np.testing.assert_allclose(done.losses, losses, rtol=1e-5)
    assert done.stopped is None
    assert int(done.state[1]) == 7


@pytest.mark.parametrize("at", [2, 5])
def test_what_was_interrupted_goes_on_with_the_same_numbers(tmp_path, at):
    whole = run_steps(tmp_path / "whole", START, step, 9, every=2, progress=False)
    counted = []

    def breaking(k, state):
        counted.append(k)
        if k == at and len(counted) == at + 1:
            raise KeyboardInterrupt
        return step(k, state)

    with pytest.raises(KeyboardInterrupt):
        run_steps(tmp_path / "parts", START, breaking, 9, every=2, progress=False)
    again = run_steps(tmp_path / "parts", START, breaking, 9, every=2, progress=False)
    # The last state whose loss was found is that of the step before.
    assert counted[at + 1 :] == list(range((at - 1) // 2 * 2, 9))
    np.testing.assert_array_equal(again.losses, whole.losses)
    np.testing.assert_array_equal(again.state[0], whole.state[0])


def without_a_number(k, state):
    """A loss that is none at step 4."""
    return state * 2.0, jnp.sum(state) * (jnp.nan if k == 4 else 1.0)


def into_no_number(k, state):
    """A finite loss at step 4, and a state that is not."""
    return state * (jnp.inf if k == 4 else 2.0), jnp.sum(state)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("diverging", "good", "known"), [(without_a_number, 8.0, 4), (into_no_number, 16.0, 5)])
def test_a_training_that_diverges_keeps_the_last_good_state(tmp_path, diverging, good, known, every):
    for _ in range(2):  # the second time from the last checkpoint
        done = run_steps(tmp_path, jnp.ones(2), diverging, 9, every=every, progress=False)
        assert done.stopped == 4
        np.testing.assert_array_equal(done.state, np.full(2, good))
        np.testing.assert_array_equal(np.isfinite(done.losses), np.arange(9) < known)


def test_a_last_step_into_no_number_is_a_stop(tmp_path):
    done = run_steps(tmp_path, jnp.ones(2), into_no_number, 5, every=3, progress=False)
    assert done.stopped == 4
    np.testing.assert_array_equal(done.state, np.full(2, 16.0))
