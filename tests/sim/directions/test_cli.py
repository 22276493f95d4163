"""The command `ufm vector` as a user meets it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import sim
from sim.directions.extraction import make_vector
from sim.directions.features import feature_vector, sae_vector
from sim.directions.sources import source
from sim.directions.texts import concept_pairs
from sim.directions.vector import Diagnosis, SteeringVector, combined
from tests.sim.bridge.test_model import letters
from tests.sim.directions.test_sparse_autoencoder import folder_of as saelens_folder
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
    assert "block 1: much of its squared length is along the attention sinks" in out
    report = json.loads((folder / "new" / "joy.json").read_text())
    assert report["diagnosis"]["1"]["accuracy"] == 0.875
    assert report["lengths"]["2"] == pytest.approx(np.linalg.norm(joy[2]))
    assert [*report["warnings"]] == ["1"]


def test_show_says_where_there_is_no_diagnosis(folder, monkeypatch, capsys):
    np.save("v.npy", np.ones(WIDTH))
    code, out, _ = run(monkeypatch, capsys, "vector", "show", "v.npy", "--layer", "3")
    assert code == 0
    assert "no diagnosis" in out


def test_show_speaks_of_zeros_and_of_single_texts(folder, monkeypatch, capsys):
    joy = SteeringVector({0: np.zeros(WIDTH), 1: np.full(WIDTH, 1e30)}, extraction={"texts": [1, 1]})
    sim.write_vector(joy, "joy.safetensors")
    code, out, _ = run(monkeypatch, capsys, "vector", "show", "joy.safetensors", "--json", "joy.json")
    assert code == 0
    assert "block 0: it is zero, and steers nowhere" in out
    assert "one text on a side: no diagnosis of halves and of held-out texts" in out
    report = json.loads((folder / "joy.json").read_text())
    assert [*report["warnings"]] == ["0"]
    assert report["lengths"]["1"] == pytest.approx(1e30 * WIDTH**0.5)


def test_convert_writes_another_format(folder, monkeypatch, capsys):
    joy = vector()
    sim.write_vector(joy, "joy.safetensors")
    code, out, err = run(monkeypatch, capsys, "vector", "convert", "joy.safetensors", "joy.gguf")
    assert (code, out) == (0, "joy.gguf\n")
    assert err.startswith("ufm: GGUF: the direction of block 0 is left out")
    assert err.count("\n") == 1
    assert sim.read_vector("joy.gguf") == joy.at([1, 2])
    code, out, err = run(monkeypatch, capsys, "vector", "convert", "joy.gguf", "2.npy", "--only", "2")
    assert (code, out) == (0, "2.npy\n")
    assert err.startswith("ufm: .npy keeps numbers alone: neither blocks, nor the model, nor the diagnosis")
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
    assert "ufm: vector: expected the model's width 32, got width 5" in err
    assert not (folder / "w.safetensors").exists()


PAIRS = [
    {"question": "AB", "matching": "CDE", "not_matching": "FGH"},
    {"question": "BA", "matching": "CDD", "not_matching": "GGH"},
    {"question": "BB", "matching": "EDC", "not_matching": "HHF"},
]


@pytest.fixture
def spelling(small, folder):
    """A model with a tokenizer of letters, saved in the folder."""
    lm = replace(small("llama"), tokenizer=letters())
    lm.save(folder / "model")
    return lm


@pytest.mark.parametrize("tokens", ["content", "answer", "2"])
def test_make_is_what_python_makes_of_pairs(folder, monkeypatch, capsys, spelling, tokens):
    (folder / "calm.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    options = ("--pairs", "calm.jsonl", "--model", "model", "--tokens", tokens, "--way", "pca-of-differences")
    code, out, _ = run(monkeypatch, capsys, "vector", "make", *options, "--only", "2", "--out", "new/calm.safetensors")
    assert code == 0
    assert "way: pca-of-differences" in out
    assert out.endswith("new/calm.safetensors\n")
    sides = ([pair[side] for pair in PAIRS] for side in ("matching", "not_matching"))
    questions, kind = [pair["question"] for pair in PAIRS], int(tokens) if tokens.isdigit() else tokens
    expected = make_vector(spelling, *sides, questions=questions, tokens=kind, way="pca-of-differences", layers=[2])
    result = sim.read_vector("new/calm.safetensors", sim.load("model", progress=False))
    assert result.name == "calm"
    assert result.extraction == expected.extraction
    assert result[2].tobytes() == expected[2].tobytes()


@pytest.mark.parametrize(("only", "name"), [("0", "calm.gguf"), ("1,2", "calm.npy"), ("0,2", "calm.NPY")])
def test_blocks_that_the_file_cannot_name_are_refused_at_once(folder, monkeypatch, capsys, only, name):
    (folder / "calm.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    options = ("--pairs", "calm.jsonl", "--model", "nowhere", "--only", only, "--out", name)
    code, _, err = run(monkeypatch, capsys, "vector", "make", *options)
    assert code == 2
    assert err.startswith("ufm: only: expected ")


def test_make_is_what_python_makes_of_texts(folder, monkeypatch, capsys, spelling):
    (folder / "up.txt").write_text("ABC\n\nABD\n")
    (folder / "down.txt").write_text("XYZ\n XYY \n")
    files = ("--positive", "up.txt", "--negative", "down.txt", "--model", "model")
    code, _, _ = run(monkeypatch, capsys, "vector", "make", *files, "--out", "up.npz")
    assert code == 0
    expected = make_vector(spelling, ["ABC", "ABD"], ["XYZ", "XYY"])
    result = sim.read_vector("up.npz")
    assert (result.name, result.layers) == ("up", (0, 1, 2))
    assert all(result[layer].tobytes() == expected[layer].tobytes() for layer in result.layers)


def test_make_takes_a_sparse_autoencoder(folder, monkeypatch, capsys, spelling):
    (folder / "sae").mkdir()
    saelens_folder(folder / "sae")
    sae = sim.read_sparse_autoencoder(folder / "sae", spelling)
    (folder / "calm.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    common = ("--model", "model", "--sae", "sae")
    code, out, _ = run(monkeypatch, capsys, "vector", "make", *common, "--pairs", "calm.jsonl", "--out", "best.npz")
    assert code == 0
    assert "way: sparse-autoencoder" in out
    sides = ([pair[side] for pair in PAIRS] for side in ("matching", "not_matching"))
    best = sae_vector(spelling, *sides, questions=[pair["question"] for pair in PAIRS], sae=sae)
    assert (sim.read_vector("best.npz").name, sim.read_vector("best.npz").layers) == ("calm", (1,))
    assert sim.read_vector("best.npz")[1].tobytes() == best[1].tobytes()
    code, out, _ = run(monkeypatch, capsys, "vector", "make", *common, "--feature", "3", "--out", "three.safetensors")
    assert code == 0
    assert sim.read_vector("three.safetensors")[1].tobytes() == feature_vector(sae, 3)[1].tobytes()
    for wrong, message in {
        ("--feature", "3", "--only", "2"): "only: expected block 1, which the autoencoder is for, got 2",
        ("--feature", "3", "--chat"): "chat: expected none beside a feature",
        ("--feature", "99999"): "feature: expected a number from 0 to",
    }.items():
        code, _, err = run(monkeypatch, capsys, "vector", "make", *common, *wrong, "--out", "wrong.npz")
        assert code == 2
        assert message in err
        assert not (folder / "wrong.npz").exists()


def test_make_trains_a_sparse_autoencoder(folder, monkeypatch, capsys, spelling):
    (folder / "calm.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    options = ("--model", "model", "--way", "sparse-autoencoder", "--only", "2", "--out", "own.npz")
    code, out, _ = run(monkeypatch, capsys, "vector", "make", "--pairs", "calm.jsonl", *options)
    assert code == 0
    assert "way: sparse-autoencoder" in out
    assert sim.read_vector("own.npz").layers == (2,)


def test_a_concept_of_the_library_or_of_a_file(folder):
    joy = source(concept="joy")
    assert joy.positive == [pair.matching for pair in concept_pairs("joy")]
    assert joy.questions == [pair.question for pair in concept_pairs("joy")]
    pairs = folder / "pairs"
    pairs.mkdir()
    (pairs / "calm.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (pairs / "rage.jsonl").write_text(json.dumps({"positive": "A", "negative": "B"}))
    assert source(pairs=pairs, concept="rage") == ("rage", ["A"], ["B"], None)
    with pytest.raises(ValueError, match=r"concept: .*got None"):
        source(pairs=pairs)
    with pytest.raises(ValueError, match=r"concept: .*got joy"):
        source(pairs=pairs, concept="joy")
    some = folder / "some.jsonl"
    some.write_text("".join(json.dumps({"positive": "A", "negative": "B"} | more) + "\n" for more in ({}, {"prompt": "C"})))
    with pytest.raises(ValueError, match=r"^pairs: expected a question in every pair, or in none, got one in 1 of 2"):
        source(pairs=some)


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
        (["make", "--out", "s.npz"], "texts: expected one of positive with negative, pairs, concept"),
        (["make", "--concept", "joy", "--positive", "a.txt", "--out", "s.npz"], "got positive and negative and concept"),
        (["make", "--positive", "v.npy", "--out", "s.npz"], "texts: expected both positive and negative, got one of them"),
        (["make", "--positive", "no.txt", "--negative", "v.npy", "--out", "s.npz"], "positive: expected a file with a text"),
        (["make", "--concept", "rage", "--out", "s.npz"], "expected one of apathetic"),
        (["make", "--concept", "joy", "--out", "s.pt"], "path: expected a file that ends in .safetensors"),
        (["make", "--concept", "joy", "--out", "s.npz", "--model", "none"], "model: expected a folder, a GGUF file"),
        (["make", "--concept", "joy", "--sae", "d", "--way", "linear-probe", "--out", "s.npz"], "way: expected sparse-auto"),
        (["make", "--feature", "3", "--out", "s.npz"], "feature: expected a folder (--sae) that it is of, got none"),
        (["make", "--sae", "d", "--feature", "3", "--concept", "joy", "--out", "s.npz"], "texts: expected none beside a"),
        (["make", "--sae", "d", "--out", "s.npz"], "texts: expected one of positive with negative, pairs, concept"),
        (["make", "--sae", "d", "--concept", "joy", "--only", "1,2", "--out", "s.npz"], "only: expected one block, of an"),
        (["make", "--way", "sparse-autoencoder", "--concept", "joy", "--out", "s.npz"], "only: expected the block to train"),
        (["make", "--sae", "d", "--feature", "3", "--tokens", "all", "--out", "s.npz"], "tokens: expected content, with"),
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
