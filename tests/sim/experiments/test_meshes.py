"""Runs on groups of devices and by several processes have the numbers of one device; one that is killed costs none."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.experiments.run import on_every_group
from sim.experiments.store import Layout, read_store
from tests.sim.experiments import tiny

SCRIPT = Path(__file__).with_name("on_mesh.py")
ROOT = SCRIPT.parents[3]


@pytest.fixture(scope="module")
def model(lm, tmp_path_factory):
    """The folder of the model."""
    return lm.save(tmp_path_factory.mktemp("model") / "model")


def start(folder, model, mesh, devices, stages, hosts=1, host=0, stop=0):
    """The script in a process of its own, with so many devices."""
    variables = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    variables |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, SCRIPT, folder, model, mesh, hosts, host, stages, stop]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), env=os.environ | variables, cwd=ROOT, **pipes)


def finish(*processes, status=0):
    """Wait for processes, and give what they print last."""
    said = []
    for process in processes:
        text = process.communicate(timeout=1200)[0]
        assert process.returncode == status, text
        said.append(text.strip().splitlines()[-1] if text.strip() else "")
    return said


def same(folder, other):
    """Whether a run has the numbers of another, to rounding, as far as it goes."""
    first, second = read_store(folder), read_store(other)
    assert second.groups
    for group in second.groups:
        one, two = first.data(group), second.data(group)
        assert second.finished(group)
        for name in one.variables:
            x, y = one[name].values, two[name].values
            if x.dtype.kind == "f":
                scale = max(1.0, np.abs(x[np.isfinite(x)]).max(initial=0.0))
                np.testing.assert_allclose(y, x, atol=2e-4 * scale, rtol=0, err_msg=f"{group} {name}")
            else:
                assert (x == y).all(), (group, name)


def test_an_error_on_one_group_ends_the_others_after_their_cells(lm, judge, tmp_path):
    experiment = replace(tiny.start(tmp_path / "run", lm, judge), others=((lm, judge), (lm, judge)))
    layout = Layout({"x": np.arange(30)}, {"f": (("x",), "float32")}, {"x": 1})
    began, refused = [], [(4,)]

    def stage(part):
        def compute(cell):
            began.append(cell)
            if cell in refused:
                raise ValueError("cell: expected none like this, got 4")
            time.sleep(0.1)
            return {"f": cell[0]}

        part.store.fill("numbers", layout, compute, progress=False)

    with pytest.raises(ValueError, match=r"^cell: .*got 4"):
        on_every_group(experiment, stage)
    assert len(began) < 15
    # Another group may take up the cell before it hears of the error.
    failed = began.count(refused[0])
    assert 1 <= failed <= 3
    assert experiment.store.done("numbers")[0] == len(began) - failed
    refused.clear()
    on_every_group(experiment, stage)
    assert experiment.store.finished("numbers")
    assert len(began) == 30 + failed


def test_two_groups_of_two_devices_fill_one_store(model, done, tmp_path):
    said = finish(start(tmp_path / "mesh", model, "data=2,model=2", 4, "next-token"))
    assert said[0].endswith(" on 2 groups of 4 devices")
    same(done.store.path, tmp_path / "mesh")


@pytest.mark.slow
def test_all_stages_on_eight_devices_and_by_two_and_four_processes(model, tmp_path):
    finish(start(tmp_path / "alone", model, "none", 1, "all"))
    finish(start(tmp_path / "eight", model, "data=2,model=4", 8, "all"))
    same(tmp_path / "alone", tmp_path / "eight")
    assert read_store(tmp_path / "eight").groups == read_store(tmp_path / "alone").groups
    finish(*[start(tmp_path / "two", model, "data=2,model=4", 4, "all", 2, host) for host in range(2)])
    same(tmp_path / "alone", tmp_path / "two")
    finish(*[start(tmp_path / "four", model, "data=4,model=2", 2, "all", 4, host) for host in range(4)])
    same(tmp_path / "alone", tmp_path / "four")


@pytest.mark.slow
def test_what_a_killed_host_has_left_is_computed_by_the_other(model, done, tmp_path):
    first, second = (start(tmp_path / "two", model, "data=2", 1, "next-token", 2, host, 3 * host) for host in range(2))
    finish(second, status=-signal.SIGKILL)
    finish(first)
    same(done.store.path, tmp_path / "two")
    assert read_store(tmp_path / "two").finished("next-token")
