"""The command `ufm vector` as a user meets it."""

import json

import numpy as np
import pytest

import sim
from sim.directions.vector import Diagnosis, SteeringVector, combined
from tests.sim.test_cli import run

WIDTH = 32
RNG = np.random.default_rng(3)


def vector(name="joy", layers=(0, 1, 2), **facts):
    return SteeringVector({layer: RNG.normal(size=WIDTH) for layer in layers}, name, **facts)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_prints_the_diagnosis_and_warnings(folder, monkeypatch, capsys):
    diagnosis = {1: Diagnosis(sink_share=0.96, accuracy=0.875), 2: Diagnosis(sink_share=0.01)}
    joy = vector(layers=(1, 2), extraction={"way": "difference of means"}, diagnosis=diagnosis)
    sim.write_vector(joy, folder / "joy.gguf")
    code, out, _ = run(monkeypatch, capsys, "vector", "show", "joy.gguf", "--json", "new/joy.json")
    assert code == 0
    assert "'joy': blocks 1, 2, width 32" in out
    assert "way: difference of means" in out
    assert "block 1: 96% of its squared length is along the attention sinks" in out
    report = json.loads((folder / "new" / "joy.json").read_text())
    assert report["diagnosis"]["1"]["accuracy"] == 0.875
    assert report["lengths"]["2"] == pytest.approx(np.linalg.norm(joy[2]))
    assert [*report["warnings"]] == ["1"]


def test_show_says_where_there_is_no_diagnosis(folder, monkeypatch, capsys):
    np.save("v.npy", np.ones(WIDTH))
    code, out, _ = run(monkeypatch, capsys, "vector", "show", "v.npy", "--layer", "3")
    assert code == 0
    assert "no diagnosis" in out


def test_convert_writes_another_format(folder, monkeypatch, capsys):
    joy = vector()
    sim.write_vector(joy, "joy.safetensors")
    code, out, err = run(monkeypatch, capsys, "vector", "convert", "joy.safetensors", "joy.gguf")
    assert (code, out) == (0, "joy.gguf\n")
    assert err.startswith("ufm: GGUF: the direction of block 0 is left out")
    assert err.count("\n") == 1
    assert sim.read_vector("joy.gguf") == joy.at([1, 2])
    assert run(monkeypatch, capsys, "vector", "convert", "joy.gguf", "2.npy", "--only", "2") == (0, "2.npy\n", "")
    assert np.load("2.npy").tobytes() == joy[2].tobytes()


def test_convert_checks_the_model(folder, monkeypatch, capsys, checkpoint):
    rows = RNG.normal(size=(3, WIDTH))
    np.save("v.npy", rows)
    np.save("w.npy", rows[:, :5])
    model = str(checkpoint("llama"))
    code, _, _ = run(monkeypatch, capsys, "vector", "convert", "v.npy", "v.safetensors", "--model", model)
    assert code == 0
    code, _, err = run(monkeypatch, capsys, "vector", "convert", "w.npy", "w.safetensors", "--model", model)
    assert code == 2
    assert "ufm: vector: expected one of width 32, the model's, got one of width 5" in err
    assert not (folder / "w.safetensors").exists()


def test_combine_adds_with_factors(folder, monkeypatch, capsys):
    joy, anger = vector(), vector("anger", layers=(1, 2, 5))
    sim.write_vector(joy, "joy.safetensors")
    sim.write_vector(anger, "a:2.gguf")
    files = ("joy.safetensors", "a:2.gguf:-0.5", "joy.safetensors:2", "a:2.gguf")
    assert run(monkeypatch, capsys, "vector", "combine", *files, "--out", "sum.npz") == (0, "sum.npz\n", "")
    total = sim.read_vector("sum.npz")
    assert total.layers == (1, 2)
    assert total.name == "joy - (0.5 * anger) + 2 * joy + anger"
    for layer in total.layers:
        assert np.abs(total[layer] - (3 * joy[layer] + 0.5 * anger[layer])).max() < 1e-6


def test_combined_keeps_a_single_vector():
    joy = vector()
    assert combined([(1.0, joy)]) is joy
    assert combined([(-2.0, joy)]) == -2.0 * joy
    with pytest.raises(ValueError, match="terms: expected at least one vector"):
        combined([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "none.gguf"], "vector: expected a file of a steering vector"),
        (["show", "."], "which is a folder"),
        (["show", "v.pt"], "a pickle, which can run code"),
        (["show", "v.npy"], "layer: expected the block that the one direction of v.npy is for"),
        (["show", "v.npy", "--layer", "1", "--model", "none"], "model: expected a folder, a GGUF file"),
        (["show", "v.npy", "--layer", "-1"], "--layer"),
        (["convert", "v.npy", "v.txt", "--layer", "1"], "path: expected a file that ends in .safetensors, .gguf"),
        (["convert", "v.npy", "v.npz", "--layer", "1", "--only", "2"], "layer: expected one of 1, got 2"),
        (["convert", "v.npy", "v.npz", "--layer", "1", "--only", "a,2"], "only: expected blocks, such as 12,20"),
        (["convert", "v.npy", "v.gguf", "--layer", "0"], "llama.cpp has no control vector for block 0"),
        (["convert", "v.npy", "v.npy/x.gguf", "--layer", "1"], "path: expected a file in a folder that can be written"),
        (["combine", "v.npy:nan", "--out", "s.npz"], "layer: expected the block"),
        (["combine", "v.safetensors:nan", "--out", "s.npz"], "factor: expected a finite number, got nan"),
        (["combine", "v.safetensors", "w.safetensors", "--out", "s.npz"], "vector: expected width 32, got width 3"),
        (["combine", "v.safetensors", "w.safetensors:1:2", "--out", "s.npz"], "'w.safetensors:1', which does not exist"),
        (["combine", "v.safetensors"], "--out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, monkeypatch, capsys, arguments, message):
    (folder / "v.pt").write_bytes(b"\x80\x04")
    np.save("v.npy", np.ones(WIDTH))
    sim.write_vector(vector(layers=(1,)), "v.safetensors")
    sim.write_vector(SteeringVector({1: np.ones(3)}), "w.safetensors")
    before = sorted(folder.iterdir())
    code, out, err = run(monkeypatch, capsys, "vector", *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before
