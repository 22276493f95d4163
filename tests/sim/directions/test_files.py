"""Steering vectors through files: what is written comes back bit for bit, and what is no vector is refused."""

import io
import json
import pickle
import re
import zipfile

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sim
from sim.bridge.config import Config
from sim.directions.file_format import KEY, contents_of
from sim.directions.vector import Diagnosis, ModelTag, SteeringVector
from tests.sim.bridge.gguf_files import written

WIDTH = 8
RNG = np.random.default_rng(0)
NUMBERS = {layer: RNG.normal(size=WIDTH).astype(np.float32) for layer in (1, 2, 5)}
NUMBERS[2][:4] = [-0.0, 1e-45, 3.4e38, 1 / 3]  # a subnormal number and the largest ones too


@pytest.fixture
def vector():
    """One that has every fact."""
    return SteeringVector(
        NUMBERS,
        'joy - "é"\n',
        ModelTag("a model", "llama", "0123abcd", WIDTH, 6),
        extraction={"way": "difference of means", "texts": [40, 40], "share": 1 / 3, "of": {"joy": True, "anger": None}},
        diagnosis={layer: Diagnosis(1 / 3, None, -0.1, 0.75, 1e-300, 2.0) for layer in NUMBERS},
        sinks={layer: RNG.normal(size=WIDTH) for layer in (1, 5)},
        scales={1: 1 / 3, 2: 7e22, 5: 250.0},
    )


@pytest.fixture(scope="session")
def model():
    """A language model that the vectors fit."""
    sizes = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "d_mlp": 16, "vocab_size": 9, "max_seq_len": 16}
    config = Config(family="llama", num_layers=6, d_model=WIDTH, learned_positions=True, **sizes)
    return sim.random_model(config, jax.random.key(0))


def control_vector(path, tensors, **metadata):
    """A GGUF file as repeng writes it, or one that differs by its metadata."""
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "controlvector"))
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    written(writer)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".gguf"])
def test_everything_comes_back_bit_for_bit(vector, tmp_path, ending):
    path = sim.write_vector(vector, tmp_path / "new" / f"joy{ending}")
    back = sim.read_vector(path)
    assert back == vector
    for layer, direction in NUMBERS.items():
        assert back[layer].tobytes() == direction.tobytes()
    for layer, sink in vector.sinks.items():
        assert back.sinks[layer].tobytes() == sink.tobytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".NPY", ".Npz", ".GGUF", ".SafeTensors"])
def test_endings_may_be_in_capitals(tmp_path, ending):
    bare = SteeringVector({3: np.ones(2, np.float32)})
    path = sim.write_vector(bare, tmp_path / f"v{ending}")
    assert sim.read_vector(path, layer=3 if ending == ".NPY" else None)[3].tobytes() == bare[3].tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [f"v{ending}"]


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".gguf"])
def test_a_vector_without_facts_comes_back(tmp_path, ending):
    bare = SteeringVector({3: np.ones(2, np.float32)})
    assert sim.read_vector(sim.write_vector(bare, tmp_path / f"v{ending}")) == bare


@pytest.mark.parametrize("change", ["directions", "name", "sinks", "scales", "diagnosis", "extraction"])
def test_vectors_that_differ_are_not_equal(vector, change):
    import dataclasses

    other = {"directions": {**NUMBERS, 1: -NUMBERS[1]}, "name": "anger", "sinks": {}, "scales": {}, "diagnosis": {}}
    assert dataclasses.replace(vector, **{change: other.get(change, {})}) != vector


def test_a_file_is_told_by_its_content(vector, tmp_path):
    sim.write_vector(vector, tmp_path / "joy.safetensors").rename(tmp_path / "joy.bin")
    assert sim.read_vector(tmp_path / "joy.bin") == vector


# --- GGUF ----------------------------------------------------------------------------------------------------------------


def test_a_control_vector_has_what_others_read(vector, tmp_path):
    reader = gguf.GGUFReader(sim.write_vector(vector, tmp_path / "joy.gguf"))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 3
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {"direction.1", "direction.2", "direction.5"}  # llama.cpp refuses any other
    for layer, direction in NUMBERS.items():
        assert tensors[f"direction.{layer}"].tensor_type == gguf.GGMLQuantizationType.F32
        assert tensors[f"direction.{layer}"].data.tobytes() == direction.tobytes()


def test_block_0_is_left_out_of_gguf_with_a_warning(vector, tmp_path):
    whole = SteeringVector({0: np.ones(WIDTH), **NUMBERS}, diagnosis={0: Diagnosis(0.5), 1: Diagnosis(0.1)})
    with pytest.warns(UserWarning, match="block 0 is left out"):
        path = sim.write_vector(whole, tmp_path / "v.gguf")
    assert sim.read_vector(path) == whole.at([1, 2, 5])
    with pytest.raises(ValueError, match=r"llama\.cpp.*block 0"):
        sim.write_vector(whole.at(0), tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def test_a_control_vector_of_others_is_read(model, tmp_path):
    tensors = {f"direction.{layer}": direction for layer, direction in NUMBERS.items()}
    path = control_vector(tmp_path / "joy.gguf", tensors, controlvector__model_hint="mistral")
    vector = sim.read_vector(path, model)  # llama.cpp calls Mistral's models llama
    assert vector == SteeringVector(NUMBERS, "joy", ModelTag(family="mistral"))
    half = {"direction.2": NUMBERS[1].astype(np.float16)}
    assert sim.read_vector(control_vector(tmp_path / "half.gguf", half))[2].tolist() == half["direction.2"].tolist()


def test_a_control_vector_for_another_family_is_refused(model, tmp_path):
    tensors = {"direction.2": NUMBERS[2]}
    path = control_vector(tmp_path / "joy.gguf", tensors, controlvector__model_hint="qwen2")
    with pytest.raises(ValueError, match=r"vector: .*got one for qwen2"):
        sim.read_vector(path, model)


@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        ({"architecture": "llama"}, "a model of the architecture llama"),
        ({"architecture": "llama", "general__type": "adapter"}, "a LoRA adapter for llama"),
    ],
)
def test_gguf_of_something_else_is_refused(tmp_path, metadata, got):
    path = control_vector(tmp_path / "x.gguf", {"blk.0.attn_q.weight": np.ones((2, 2), np.float32)}, **metadata)
    with pytest.raises(ValueError, match=f"control vector, got .*x.gguf', {got}"):
        sim.read_vector(path)


def test_gguf_with_its_numbers_big_end_first_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "controlvector", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("direction.1", np.arange(1, 9, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"^vector: expected a GGUF file .*little end first, got .*x.gguf', big end first"):
        sim.read_vector(tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "I64", "I32", "I16", "I8", "BF16", "Q8_0"])
def test_gguf_is_read_in_every_type_that_can_hold_a_direction(tmp_path, kind):
    numbers = np.full(32, 2.0, np.float32)
    stored = {"BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}.get(kind)
    of_numpy = kind.lower().replace("f", "float").replace("i", "int")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "controlvector")
    tensor = gguf.quantize(numbers, stored) if stored else numbers.astype(of_numpy)
    writer.add_tensor("direction.1", tensor, raw_dtype=stored)
    written(writer)
    rounding = 1e-4 if kind == "Q8_0" else 0.0  # of its scale, in float16
    np.testing.assert_allclose(sim.read_vector(tmp_path / "x.gguf").directions[1], numbers, rtol=rounding)


def safetensors_bytes(kind, size):
    """A safetensors file with four numbers of a type at block 1, each of a number of bytes."""
    entry = {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}
    header = json.dumps({"direction.1": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(4 * size))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_a_type_that_numpy_does_not_have_is_refused_by_its_name(tmp_path, kind):
    (tmp_path / "v.safetensors").write_bytes(safetensors_bytes(kind, 1))
    expected = rf"^vector: expected numbers in a type that is read .*got {kind} at 'direction.1' in .*v.safetensors'$"
    with pytest.raises(ValueError, match=expected):
        sim.read_vector(tmp_path / "v.safetensors")


def test_bfloat16_is_read_from_safetensors(tmp_path):
    numbers = np.asarray([1, 2, -3, 0.5], ml_dtypes.bfloat16)
    content = bytearray(safetensors_bytes("BF16", 2))
    content[-8:] = numbers.tobytes()
    (tmp_path / "v.safetensors").write_bytes(bytes(content))
    np.testing.assert_array_equal(sim.read_vector(tmp_path / "v.safetensors").directions[1], [1, 2, -3, 0.5])


def test_a_link_stays_one_and_its_file_is_written(vector, tmp_path):
    (tmp_path / "kept").mkdir()
    link = tmp_path / "v.safetensors"
    link.symlink_to(tmp_path / "kept" / "joy.safetensors")
    for saved in (vector.at([2]), vector):  # a file that is not there yet, and one that is
        assert sim.write_vector(saved, link) == link
        assert link.is_symlink()
        assert sim.read_vector(tmp_path / "kept" / "joy.safetensors") == saved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "v.safetensors"]


def test_a_name_may_be_as_long_as_the_system_allows(vector, tmp_path):
    path = tmp_path / f"{'x' * 245}.gguf"
    assert sim.read_vector(sim.write_vector(vector, path)) == vector


# --- arrays of others ----------------------------------------------------------------------------------------------------


def test_arrays_are_directions_of_one_block_or_of_all(tmp_path, model):
    rows = RNG.normal(size=(6, WIDTH))
    np.save(tmp_path / "one.npy", rows[4])
    np.save(tmp_path / "all.npy", rows)
    np.save(tmp_path / "states.npy", np.concatenate([rows[:1], rows]))
    save_file({"v": rows[4].astype(ml_dtypes.bfloat16)}, tmp_path / "one.safetensors")
    assert sim.read_vector(tmp_path / "one.npy", model, layer=4).layers == (4,)
    whole = sim.read_vector(tmp_path / "all.npy", model)
    assert np.array_equal([*whole.directions.values()], rows.astype(np.float32))
    assert np.abs(sim.read_vector(tmp_path / "one.safetensors", layer=2)[2] - rows[4]).max() < 2e-2
    with pytest.raises(ValueError, match=r"6 blocks.*got 7 rows.*embedding"):
        sim.read_vector(tmp_path / "states.npy", model)
    with pytest.raises(ValueError, match=r"^layer: .*one\.npy.*got none"):
        sim.read_vector(tmp_path / "one.npy")
    with pytest.raises(ValueError, match=r"layer: .*got 3"):
        sim.read_vector(tmp_path / "all.npy", layer=3)


def test_archives_of_others_name_their_blocks(tmp_path):
    np.savez(tmp_path / "v.npz", **{"direction.1": NUMBERS[1], "5": NUMBERS[5]})
    assert sim.read_vector(tmp_path / "v.npz") == SteeringVector({1: NUMBERS[1], 5: NUMBERS[5]}, "v")
    np.savez(tmp_path / "v.npz", **{"direction.5": NUMBERS[1], "5": NUMBERS[5]})
    with pytest.raises(ValueError, match=r"got several for block \[5\]"):
        sim.read_vector(tmp_path / "v.npz")


def test_npy_has_one_block_or_all(vector, tmp_path):
    path = sim.write_vector(vector.at(5), tmp_path / "v.npy")
    assert np.load(path).tobytes() == NUMBERS[5].tobytes()
    rows = np.stack([*NUMBERS.values()])
    assert np.array_equal(np.load(sim.write_vector(SteeringVector(dict(enumerate(rows))), path)), rows)
    with pytest.raises(ValueError, match="got blocks 1, 2, 5"):
        sim.write_vector(vector, tmp_path / "other.npy")
    assert not (tmp_path / "other.npy").exists()


# --- for a model ---------------------------------------------------------------------------------------------------------


def test_a_vector_of_other_weights_is_refused_unless_they_will_do(vector, model, tmp_path):
    path = sim.write_vector(vector, tmp_path / "v.gguf")
    with pytest.raises(ValueError, match=r"^vector: .*random.*other_weights=True"):
        sim.read_vector(path, model)
    assert sim.read_vector(path, model, other_weights=True) == vector


@pytest.mark.parametrize(
    ("directions", "expected"),
    [({2: np.ones(WIDTH + 1)}, "the model's width 8, got width 9"), ({6: np.ones(WIDTH)}, "got block 6")],
)
def test_a_vector_of_another_shape_is_refused(model, tmp_path, directions, expected):
    path = sim.write_vector(SteeringVector(directions), tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=expected):
        sim.read_vector(path, model)


# --- what is refused -----------------------------------------------------------------------------------------------------


def torch_archive():
    """The form of a file that torch.save writes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(NUMBERS))
        archive.writestr("archive/data/0", b"0")
    return data.getvalue()


def archive_of(name):
    """A zip archive of one small file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, b"0")
    return data.getvalue()


def array_file(array):
    """What numpy.save writes."""
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("v.pt", torch_archive(), r"a pickle, which can run code: .*numpy.savez\("),
        ("v.pkl", pickle.dumps(NUMBERS), "a pickle, which can run code"),
        ("v.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS: .*git lfs pull"),
        ("v.gguf", b"", "an empty file"),
        ("v.txt", b"0.1 0.2 0.3", "a file that begins like none of these"),
        ("v.npz", b"PK\x03\x04 and no more", "a damaged or empty archive"),
        ("v.npz", archive_of("a.txt"), "an archive with other things than arrays of NumPy"),
        ("v.npy", array_file(np.array([{}], dtype=object)), "Object arrays cannot be loaded"),
        ("v.npy", array_file(np.array(["a", "b"])), "real numbers, got an array"),
        ("v.npy", array_file(np.ones((2, 2, 2))), r"an array \[d\] or \[L, d\], got shape \(2, 2, 2\)"),
        ("v.npy", array_file(np.ones(0)), r"an array \[d\] or \[L, d\], got shape \(0,\)"),
        ("v.npy", array_file(np.array([1, np.nan])), r"finite numbers, got nan at index \(1,\)"),
        ("v.npy", array_file(np.array([1, 1e39])), "finite numbers, got inf"),
    ],
)
def test_files_that_hold_no_vector_are_refused(tmp_path, name, content, got):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"expected .*{got}") as caught:
        sim.read_vector(tmp_path / name, layer=1)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".gguf"])
def test_no_half_of_a_file_is_read(vector, tmp_path, ending):
    path = sim.write_vector(vector, tmp_path / f"v{ending}")
    content = path.read_bytes()
    for length in [*range(0, len(content), 29), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="vector: expected"):
            sim.read_vector(path)


@pytest.mark.parametrize(
    ("tensors", "text", "expected"),
    [
        ({"a": NUMBERS[1], "b": NUMBERS[2]}, None, r"the names direction.<block>, or a single array .*got a, b in"),
        ({"direction.1": NUMBERS[1], "b": NUMBERS[2]}, None, "got also b in"),
        ({"direction.1": NUMBERS[1]}, '{"format": 2}', "format 1, got format 2 .a later version of this package wrote it"),
        ({"direction.1": NUMBERS[1]}, '{"format": "1"}', "format 1, got format '1'"),
        ({"direction.1": NUMBERS[1]}, "{}", "the number of their format, got '{}'"),
        ({"direction.1": NUMBERS[1]}, '{"format": 1, "scales": {"1": "x"}}', "facts of format 1, got scales.1"),
        (
            {"direction.1": NUMBERS[1]},
            '{"format": 1, "model": {"d_model": 4}}',
            "the 4 numbers of the model's",
        ),
        ({"direction.1": NUMBERS[1], "direction.2": NUMBERS[1][:3]}, None, r"one width, got \[3, 8\]"),
        ({"direction.1": NUMBERS[1], "sink.1": NUMBERS[1], "sink.2": NUMBERS[1][:3]}, None, "8 numbers .* got 3 at block 2"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, tensors, text, expected):
    save_file(tensors, tmp_path / "v.safetensors", None if text is None else {KEY: text})
    with pytest.raises(ValueError, match=f"expected .*{expected}"):
        sim.read_vector(tmp_path / "v.safetensors")


def test_facts_that_are_not_known_yet_are_passed_over(vector, tmp_path):
    path = sim.write_vector(vector, tmp_path / "v.safetensors")
    text = json.loads(contents_of(vector).facts)
    text["diagnosis"]["1"]["of the same format"] = 1.0
    save_file(load_file(path), path, {KEY: json.dumps(text)})
    assert sim.read_vector(path) == vector


def test_folders_and_missing_files_are_refused(tmp_path):
    for path, got in ((tmp_path, "which is a folder"), (tmp_path / "none.gguf", "which does not exist")):
        with pytest.raises(ValueError, match=f"^vector: .*steering vector.*{got}"):
            sim.read_vector(path)


@pytest.mark.parametrize(
    ("extraction", "name", "expected"),
    [
        ({}, "v.pt", "path: expected a file that ends in .safetensors, .gguf, .npz, .npy"),
        ({}, "v", "path: expected a file that ends in"),
        ({"a": object()}, "v.npz", "extraction: expected facts that JSON can hold"),
        ({"a": float("nan")}, "v.npz", "extraction: expected facts that JSON can hold"),
        ({"a": "\ud800"}, "v.npz", "extraction: expected facts that JSON can hold"),
        ({}, "v\0.npz", "path: expected a name without null bytes"),
    ],
)
def test_nothing_is_written_of_what_cannot_be(tmp_path, extraction, name, expected):
    with pytest.raises(ValueError, match=expected):
        sim.write_vector(SteeringVector({1: np.ones(1)}, extraction=extraction), tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_an_older_file_stays_if_writing_fails(vector, tmp_path, monkeypatch):
    path = sim.write_vector(vector, tmp_path / "v.gguf")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space"):
        sim.write_vector(-vector, path)
    assert sim.read_vector(path) == vector
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", ["direction.-1", "Direction.15", "direction.15.0", "-1", "sink.x"])
def test_a_name_that_almost_says_a_block_is_refused(tmp_path, name):
    np.savez(tmp_path / "v.npz", **{name: np.ones(4)})
    with pytest.raises(ValueError, match=f"^vector: expected .* got {re.escape(repr(name))}"):
        sim.read_vector(tmp_path / "v.npz", layer=3)
