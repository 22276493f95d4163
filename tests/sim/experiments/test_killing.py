"""A run of all stages is killed at random moments and gone on with: the numbers are those of a run that was not."""

import signal
import time
from collections import Counter

import numpy as np
import pytest

from sim.experiments.store import read_store
from tests.sim.experiments import tiny


def noted(folder):
    """What the processes of a run have noted, one after the other: a word, a group and a cell."""
    file = folder.with_suffix(".cells")
    return [tuple(line.split()) for line in file.read_text().splitlines()] if file.is_file() else []


def killed(folder, compiled, after, delay):
    """Go on with a run until so many more cells have been computed, and a bit longer; whether it was killed then."""
    before = len(noted(folder))
    process = tiny.started(folder, compiled)
    while process.poll() is None and len(noted(folder)) < before + 2 * after:
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    status = process.wait()
    assert status in (0, -signal.SIGKILL)
    return status != 0


def is_whole(folder, done, most):
    """Whether a run has the numbers of one in one go, computed no finished cell again, and `most` others again at most."""
    over, every = set(), sum(done.store.done(group)[1] for group in done.store.groups)
    for word, *cell in noted(folder):
        assert tuple(cell) not in over
        if word == "done":
            over.add(tuple(cell))
    times = Counter(tuple(cell) for word, *cell in noted(folder) if word == "computed")
    assert len(times) == every
    assert sum(times.values()) <= every + most
    store = read_store(folder)
    assert store.groups == done.store.groups
    for group in store.groups:
        first, second = done.store.data(group), store.data(group)
        assert first.identical(second), group
        for name in first.variables:
            assert first[name].dtype == second[name].dtype
            if first[name].dtype.kind in "fi":
                assert first[name].values.tobytes() == second[name].values.tobytes(), (group, name)


def test_a_run_in_several_goes_and_another_order_has_the_same_numbers(done):
    is_whole(done.store.path.with_name("goes"), done, 0)


@pytest.mark.slow
def test_a_run_that_is_killed_very_often_goes_on(done, compiled, tmp_path):
    kills, rng, folder = 20, np.random.default_rng(0), tmp_path / "run"
    every = sum(done.store.done(group)[1] for group in done.store.groups)
    count = sum(
        killed(folder, compiled, int(rng.integers(0, 2 * every // kills)), rng.uniform(0, 0.1)) for _ in range(kills)
    )
    assert count >= kills / 2
    assert tiny.started(folder, compiled).wait() == 0
    is_whole(folder, done, count)
