"""The same numbers on one device, on eight, and in two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sim.bridge import devices, sharding
from sim.bridge.model import load
from sim.bridge.parameters import is_block_matrix, parameter_bytes
from sim.bridge.sharding import RULES, bytes_on_each, make_mesh, spec, spread

SCRIPT = Path(__file__).parent / "sharded.py"
ROOT = SCRIPT.parents[3]


def start(folder, out, devices, *arguments):
    jax_variables = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **jax_variables, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, folder, out, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    for process in processes:
        text = process.communicate(timeout=300)[0]
        assert process.returncode == 0, text


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """What one device gives."""
    folder, out = checkpoint("llama, grouped, tied"), tmp_path_factory.mktemp("alone") / "out.npz"
    finish(start(folder, out, 1, 1, 1, 0))
    return np.load(out)


def compare(out, alone, devices, hosts=1):
    spread = np.load(out)
    assert spread["devices"] == devices
    assert any("model" in sharding for sharding in spread["shardings"])
    apart = {"devices", "shardings"} | ({"alpha", "interval"} if hosts > 1 else set())
    measured = [name for name in alone.files if name not in apart and "operations" not in name]
    assert len(measured) > 10
    for name in measured:
        # A strength is solved from percentiles, which a rounding may take from another prediction.
        relative = 1e-3 if name in ("alpha", "interval") else 1e-5
        np.testing.assert_allclose(spread[name], alone[name], atol=2e-5, rtol=relative, err_msg=name)
    return spread


@pytest.mark.parametrize(("data", "model", "offload"), [(1, 8, 0), (4, 2, 1)])
def test_eight_devices(checkpoint, tmp_path, alone, data, model, offload):
    finish(start(checkpoint("llama, grouped, tied"), tmp_path / "out.npz", 8, data, model, offload))
    spread = compare(tmp_path / "out.npz", alone, 8)
    for n in (1, 3, 4):
        # A device does its part of the blocks, and of the contexts or the strengths; the unembedding is whole on each
        # device of a group, for 61 tokens do not come out even.
        operations = f"operations of {n}, at once"
        assert spread[operations] / alone[operations] < (1.3 / data if data > 1 else 0.6), n


@pytest.mark.slow
def test_two_processes(checkpoint, tmp_path, alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, out = checkpoint("llama, grouped, tied"), tmp_path / "out.npz"
    finish(*[start(folder, out, 2, 2, 2, 0, 2, rank, port) for rank in (0, 1)])
    compare(out, alone, 4, hosts=2)


def test_rules():
    mesh = make_mesh(1, 1)
    assert spec(("layer", "d_model", "heads"), (3, 32, 64), mesh) == PartitionSpec(None, None, "model")
    assert spec(("heads", "d_mlp"), (8, 8), mesh) == PartitionSpec("model", None)
    with pytest.raises(ValueError, match=r"rules: .*got \['other'\]"):
        spec(("heads",), (8,), mesh, RULES | {"heads": "other"})
    with pytest.raises(ValueError, match=r"mesh: .*got 99"):
        make_mesh(99, 1)
    with pytest.raises(ValueError, match=r"^data: .*at least 1, got 0"):
        make_mesh(0)


def test_a_mesh_along_which_nothing_divides_is_refused(small, monkeypatch):
    made = Mesh(np.asarray(jax.devices()[:1] * 7).reshape(1, 7), ("data", "model"))
    monkeypatch.setattr(sharding, "mesh_from_text", lambda *_, **__: made)
    with pytest.raises(ValueError, match=r"^mesh: expected model= .*divides.*, got model=7"):
        sharding.on_mesh("model=7", np.float32)(small("llama").config, "embedding", (1,))


def test_contexts_are_spread():
    assert spread(make_mesh(1, 1), np.zeros((3, 4)))[0].shape == (3, 4)


def test_a_mesh_without_room_is_refused(checkpoint, small, tmp_path, monkeypatch):
    folder, lm = checkpoint("llama, grouped, tied"), small("llama, grouped, tied")
    monkeypatch.setattr(devices, "free", lambda device: 1000)
    with pytest.raises(ValueError, match=r"^model: .*at least 0.1 MiB free, got 0.0 MiB"):
        load(folder, mesh=make_mesh(1, 1), progress=False)
    with pytest.raises(ValueError, match=r"^rules: expected axes of the mesh, x, got \['model'\]"):
        load(folder, mesh=Mesh(jax.devices()[:1], ("x",)), progress=False)
    monkeypatch.setattr(devices, "capacity", lambda device: 1000)
    lm.save(tmp_path / "ours")
    for path in (folder, tmp_path / "ours"):
        with pytest.raises(ValueError, match=r"^mesh: .*parameters of 0.1 MiB each, spread over all, got 1 with 0.0 MiB"):
            load(path, mesh="auto", progress=False)
        with pytest.raises(ValueError, match=r"^model: .*at least 0.1 MiB free, got 0.0 MiB"):
            load(path, progress=False)


def test_what_does_not_divide_is_whole_on_each_device(small):
    lm = small("llama, grouped, tied")
    a, whole = lm.config, parameter_bytes(lm.config, "float32")
    assert bytes_on_each(a, "float32") == whole
    # Of 61 tokens, and of norms, no axis divides by 2; all matrices of blocks have one that does.
    apart = sum(value.nbytes for name, value in lm.parameters.items() if is_block_matrix(a, name))
    assert bytes_on_each(a, "float32", {"data": 3, "model": 2}) == whole - apart // 2
    # A table of rules may use any axis: here the width of the MLPs, of 48, over three groups, and no other.
    of_mlps = sum(lm.parameters[f"blocks.{name}"].nbytes for name in ("gate", "up", "down"))
    rules = {"d_mlp": "data"}
    assert bytes_on_each(a, "float32", {"data": 3, "model": 2}, rules=rules) == whole - of_mlps * 2 // 3
    # Nothing divides by 7.
    assert bytes_on_each(a, "float32", {"data": 1, "model": 7}) == whole
