"""Checkpoints in every format, whole and damaged: what is loaded is right, and what is not whole is refused by name."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from flax import nnx, serialization
from safetensors.numpy import load_file, save_file

from sim.bridge.model import load
from sim.bridge.parameters import shapes
from sim.bridge.tokenizer import Tokenizer, from_folder
from sim.bridge.weights.gguf_file import Gguf
from sim.bridge.weights.hf import Msgpack, Safetensors, load_params, open_folder
from tests.sim.bridge import references
from tests.sim.bridge.gguf_files import written


def parameters(folder):
    return load_params(*open_folder(folder), progress=False)


def same(left, right, rtol=0.0):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=rtol, err_msg=name)


@pytest.fixture
def llama(checkpoint, tmp_path):
    """A copy of a small model that tests may damage."""
    shutil.copytree(checkpoint("llama, grouped, tied"), tmp_path / "llama")
    return tmp_path / "llama"


# --- formats ---------------------------------------------------------------------------------------------------------


def test_shards_are_as_good_as_one_file(llama):
    expected, tensors = parameters(llama), load_file(llama / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, listed in shards.items():
        save_file({name: tensors[name] for name in listed}, llama / file)
    (llama / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, listed in shards.items() for name in listed}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    same(parameters(llama), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_in_other_types(llama, dtype):
    expected, tensors = parameters(llama), load_file(llama / "model.safetensors")
    save_file({name: value.astype(dtype) for name, value in tensors.items()}, llama / "model.safetensors")
    for name, value in parameters(llama).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-2, atol=1e-6)
    small = load(llama, dtype=dtype, progress=False)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(jax.tree.map(lambda x: x, parameters(llama)))}
    assert kinds == {"float32"}
    assert small.decoder.embedding[...].dtype == dtype
    assert small.decoder.norm[...].dtype == np.float32


def test_gemma_inside_a_multimodal_checkpoint_by_either_name(checkpoint, tmp_path):
    folder = checkpoint("gemma3 among images")
    expected, tensors = parameters(folder), load_file(folder / "model.safetensors")
    assert any(name.startswith("model.vision_tower.") for name in tensors)
    shutil.copytree(folder, tmp_path / "older")
    renamed = {
        name.replace("model.language_model.", "language_model.model.").replace("model.vision_tower.", "vision_tower."): value
        for name, value in tensors.items()
    }
    save_file(renamed, tmp_path / "older" / "model.safetensors")
    same(parameters(tmp_path / "older"), expected)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_flax_gpt2(checkpoint, tmp_path, prefix):
    """Flax has matrices the other way round, and its own names for embeddings and gains."""
    folder = checkpoint("gpt2")
    tree = {}
    for name, value in load_file(folder / "model.safetensors").items():
        path = (prefix + name.removeprefix("transformer.")).split(".")
        kind = {"wte": "embedding", "wpe": "embedding"}.get(path[-2], "scale" if path[-2].startswith("ln_") else "kernel")
        path[-1] = kind if path[-1] == "weight" else path[-1]
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value.T if kind == "kernel" and value.ndim == 2 else value
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    same(parameters(tmp_path), parameters(folder))


def write_gguf(path, folder, kind=gguf.GGMLQuantizationType.F32, change=None):
    """A small Llama as llama.cpp writes it: rows of queries and keys in pairs."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "blk"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for name, value in load_file(folder / "model.safetensors").items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
        if heads:
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        chosen = kind if value.ndim == 2 and value.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(value, chosen), raw_dtype=chosen)
    if change:
        change(writer)
    written(writer)
    return path


@pytest.mark.parametrize(
    ("kind", "rtol"), [("F32", 0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 0.02), ("Q4_0", 0.2), ("Q4_1", 0.2)]
)
def test_gguf(checkpoint, tmp_path, kind, rtol):
    folder = checkpoint("llama, grouped, tied")
    file = Gguf(write_gguf(tmp_path / "model.gguf", folder, gguf.GGMLQuantizationType[kind]))
    expected, (config, _) = parameters(folder), open_folder(folder)
    assert {**vars(file.config), "eps": 0} == {**vars(config), "eps": 0}
    assert file.config.eps == pytest.approx(config.eps, rel=1e-6)
    for name, value in load_params(file.config, file, progress=False).items():
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], atol=float(rtol * largest), rtol=0, err_msg=name)


def gguf_of(folder, raw, kind):
    """A GGUF file with one tensor, of raw blocks of a type."""
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    writer.add_tensor("some.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    written(writer)
    return Gguf(folder / "one.gguf")


def unpacked_q4_k(raw):
    """Blocks of 256 numbers: a scale and a least value for every 32, of 6 bits each, in units of two halves."""
    values = []
    for block in raw.reshape(-1, 144):
        unit, unit_of_least = block[:4].view(np.float16).astype(np.float32)
        packed = block[4:16].astype(int)
        for j in range(8):
            if j < 4:
                scale, least = packed[j] & 63, packed[j + 4] & 63
            else:
                scale = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
                least = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)
            four_bits = block[16 + 32 * (j // 2) : 48 + 32 * (j // 2)] >> (4 * (j % 2)) & 15
            values.append(unit * scale * four_bits - unit_of_least * least)
    return np.concatenate(values)


def unpacked_q5(raw, least):
    """Blocks of 32 numbers of 5 bits, the fifth ones apart, with a half for all; less 16, or with another half added."""
    values, start = [], 4 if least else 2
    for block in raw.reshape(-1, start + 20):
        unit, *added = block[:start].view(np.float16).astype(np.float32)
        fifth = np.unpackbits(block[start : start + 4], bitorder="little").astype(int)
        codes = np.concatenate([block[start + 4 :] & 15, block[start + 4 :] >> 4]) + 16 * fifth
        values.append(unit * codes + added[0] if least else unit * (codes - 16))
    return np.concatenate(values)


def unpacked_q2_k(raw):
    """Blocks of 256 numbers of 2 bits, with a scale and a least value of 4 bits for every 16, and a half for all of each."""
    values = []
    for block in raw.reshape(-1, 84):
        unit, unit_of_least = block[80:84].view(np.float16).astype(np.float32)
        for k in range(16):
            half, shift, part = k // 8, k % 8 // 2, k % 2
            codes = block[16 + 32 * half + 16 * part :][:16] >> (2 * shift) & 3
            values.append(unit * (block[k] & 15) * codes - unit_of_least * (block[k] >> 4))
    return np.concatenate(values)


def unpacked_q6_k(raw):
    """Blocks of 256 numbers of 6 bits, with a signed scale of 8 bits for every 16 and a half for all."""
    values = []
    for block in raw.reshape(-1, 210):
        low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8).astype(np.float32)
        unit = block[208:].view(np.float16).astype(np.float32)[0]
        for half in range(2):
            for part in range(4):
                four = low[64 * half + 32 * (part % 2) :][:32] >> (4 * (part // 2)) & 15
                two = high[32 * half :][:32] >> (2 * part) & 3
                q = (four | (two << 4)).astype(np.float32) - 32
                values.append(unit * q * np.repeat(scales[8 * half + 2 * part :][:2], 16))
    return np.concatenate(values)


def unpacked_iq4_nl(raw):
    """Blocks of 32 numbers out of 16 that are not evenly spaced, with a half for all; low bits are the first 16."""
    spaced = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    values = []
    for block in raw.reshape(-1, 18):
        codes = np.concatenate([block[2:] & 15, block[2:] >> 4])
        values.append(block[:2].view(np.float16).astype(np.float32)[0] * np.asarray(spaced, np.float32)[codes])
    return np.concatenate(values)


def unpacked_mxfp4(raw):
    """Blocks of 32 numbers of a sign, two bits of exponent and one of fraction, with a power of 2 for all."""
    halves = np.asarray([0, 1, 2, 3, 4, 6, 8, 12], np.float64) / 2
    values = []
    for block in raw.reshape(-1, 17):
        codes = np.concatenate([block[1:] & 15, block[1:] >> 4])
        values.append(2.0 ** (int(block[0]) - 127) * np.concatenate([halves, -halves])[codes])
    return np.concatenate(values)


def unpacked_tq2_0(raw):
    """Blocks of 256 numbers of two bits, 0 to 2 for -1 to 1, and a half for all."""
    values = []
    for block in raw.reshape(-1, 66):
        unit = block[64:].view(np.float16).astype(np.float32)[0]
        for part in (block[:32], block[32:64]):
            values += [unit * ((part >> shift & 3).astype(np.float32) - 1) for shift in (0, 2, 4, 6)]
    return np.concatenate(values)


DEFINED = {
    "Q5_0": (22, slice(0, 2), partial(unpacked_q5, least=False)),
    "Q5_1": (24, slice(0, 4), partial(unpacked_q5, least=True)),
    "Q2_K": (84, slice(80, 84), unpacked_q2_k),
    "Q4_K": (144, slice(0, 4), unpacked_q4_k),
    "Q6_K": (210, slice(208, 210), unpacked_q6_k),
    "IQ4_NL": (18, slice(0, 2), unpacked_iq4_nl),
    "MXFP4": (17, None, unpacked_mxfp4),
    "TQ2_0": (66, slice(64, 66), unpacked_tq2_0),
}
"""For quantised types: bytes of a block, where its halves are, and what it is."""


@pytest.mark.parametrize("kind", DEFINED)
def test_quantised_types_against_their_definition(tmp_path, kind):
    size, where, unpacked = DEFINED[kind]
    block_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    raw = np.random.default_rng(0).integers(0, 256, (3, 512 // block_size * size), dtype=np.uint8)
    for block in raw.reshape(-1, size):
        if where is None:
            block[0] = 120 + block[0] % 8
            continue
        units = np.random.default_rng(1).uniform(0.01, 0.1, (where.stop - where.start) // 2)
        block[where] = units.astype(np.float16).view(np.uint8)
    file = gguf_of(tmp_path, raw, kind)
    assert file.shapes() == {"some.weight": (3, 512)}
    np.testing.assert_allclose(file.read("some.weight"), unpacked(raw).reshape(3, 512), rtol=1e-6, atol=1e-6)


QUANTISED = (
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q3_K",
    "Q5_K",
    "TQ1_0",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ4_XS",
)
QUANTISED += tuple({"NVFP4"} & set(gguf.GGMLQuantizationType.__members__))
"""The others that the package dequantises; its newest releases know one more."""


def test_what_cannot_be_dequantised_is_named(tmp_path):
    raw = np.zeros((2, 292), np.uint8)
    with pytest.raises(ValueError, match=r"some.weight: .* got Q8_K"):
        gguf_of(tmp_path, raw, "Q8_K").read("some.weight")


def test_float64_of_gguf(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("some.weight", np.asarray([[1.5, -2.0], [0.25, 3.0], [4.0, 5.0]], np.float64))
    written(writer)
    np.testing.assert_array_equal(Gguf(tmp_path / "one.gguf").read("some.weight"), [[1.5, -2.0], [0.25, 3.0], [4.0, 5.0]])


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_quantised_type_is_read(tmp_path, kind):
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    width = 256
    per_row = width // gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] * size
    raw = np.random.default_rng(0).integers(0, 60, (2, per_row), dtype=np.uint8)
    file, expected = gguf_of(tmp_path, raw, kind), gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert file.read("some.weight").shape == (2, width)
    np.testing.assert_array_equal(file.read("some.weight"), expected)


# --- Orbax ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma3, scaled"])
def test_what_is_saved_is_loaded_again(small, tmp_path, name):
    model = small(name)
    again = load(model.save(tmp_path / "kept"))
    assert again.config == model.config
    assert again.fingerprint == load(tmp_path / "kept").fingerprint
    np.testing.assert_array_equal(again.logits([[1, 2, 3]])[0], model.logits([[1, 2, 3]])[0])
    half = load(tmp_path / "kept", dtype=jnp.bfloat16)
    assert half.decoder.embedding[...].dtype == jnp.bfloat16
    assert half.decoder.norm[...].dtype == jnp.float32


def test_a_tokenizer_is_kept_with_its_model(small, tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "<end>": 2}, unk_token="one"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    for template in (None, "{{ messages }}", templates):
        tokenizer = Tokenizer(core, bos=None, eos=2, eos_ids=(2,), template=template, named={"pad_token": "<end>"})
        again = load(
            replace(small("gpt2"), tokenizer=tokenizer).save(tmp_path / f"kept {template is None} {len(template or ())}")
        )
        assert again.tokenizer.encode("two one two") == [1, 0, 1]
        kept = again.tokenizer
        assert (kept.eos, kept.eos_ids, kept.template, kept.named) == (2, (2,), template, {"pad_token": "<end>"})


def test_that_special_tokens_are_split_is_kept(small, tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    core.add_special_tokens(["<end>"])
    core.encode_special_tokens = True
    again = load(replace(small("gpt2"), tokenizer=Tokenizer(core)).save(tmp_path / "kept"))
    assert again.tokenizer.encode("<end>") == core.encode("<end>").ids == [0]


def test_a_folder_that_holds_something_is_not_written_over(small, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^folder: .*empty"):
        small("gpt2").save(tmp_path)
    for bad in (tmp_path / "mine.txt", 3, None):
        with pytest.raises(ValueError, match=r"^folder: "):
            small("gpt2").save(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("damage", ["about", "arrays", "nan"])
def test_a_damaged_orbax_folder_is_refused(small, tmp_path, damage):
    model = small("gpt2")
    if damage == "nan":
        graph, state = nnx.split(model.decoder)
        model = replace(model, decoder=nnx.merge(graph, jax.tree.map(lambda leaf: leaf * np.nan, state)))
    folder = model.save(tmp_path / "kept")
    if damage == "about":
        next((folder / "about").glob("metadata")).write_text("{")
    if damage == "arrays":
        for path in (folder / "parameters").rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"expected (a whole Orbax checkpoint|finite weights)"):
        load(folder)


# --- what is not whole -----------------------------------------------------------------------------------------------


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"expected all tensors of the architecture, got no {Q}"),
        (lambda t: t.update(more=np.ones(3)), "expected tensors of the architecture only, got also more"),
        (lambda t: t.update({Q: t[Q][:-1]}), rf"{Q}: expected shape \(32, 32\) for blocks.query, got \(31, 32\)"),
        (lambda t: t.update({Q: np.where(t[Q] > 0, t[Q], np.nan)}), f"{Q}: expected finite weights"),
        (lambda t: t.update({"model.norm.weight": np.full(32, np.inf, np.float32)}), "model.norm.weight: expected finite"),
    ],
    ids=["missing", "extra", "shape", "NaN", "infinity"],
)
def test_tensors_that_are_not_right_are_named(llama, change, message):
    edit(llama, change)
    with pytest.raises(ValueError, match=message):
        load(llama, progress=False)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_names_behind_the_prefix_of_a_wrapper(llama, prefix):
    def wrap(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit(llama, wrap)
    with pytest.raises(ValueError, match=rf"^checkpoint: .*got no .*names that begin with '{re.escape(prefix)}'"):
        load(llama, progress=False)


def test_a_shard_that_is_missing(llama):
    index = {"weight_map": {"x": "one.safetensors", "y": "../model.safetensors"}}
    (llama / "model.safetensors").rename(llama / "one.safetensors")
    path = llama / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"weight_map: .*beside the index"):
        load(llama)
    path.write_text(json.dumps({"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}))
    with pytest.raises(ValueError, match=r"got no two\.safetensors"):
        load(llama)
    path.write_text(json.dumps({"weight_map": {"x": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"one\.safetensors.*got no x"):
        load(llama)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        load(llama)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("start", [None, b"PK\x03\x04", b"\x80\x02"])
def test_pickles_are_refused(llama, name, start):
    (llama / "model.safetensors").rename(llama / name)
    if start:
        (llama / name).write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match="a pickle can run code"):
        load(llama)
    with pytest.raises(ValueError, match="a pickle can run code"):
        load(llama / name)


@pytest.mark.parametrize(
    ("name", "start", "fact"),
    [
        ("model", b"PK\x03\x04", "a pickle"),
        ("model.weights", b"\x80\x04", "a pickle"),
        ("model.bin", b"tjgg\x03\0\0\0", "before GGUF"),
        ("model.gguf", b"", "an empty file"),
        ("model.gguf", b"<!DOCTYPE html>", "does not begin as GGUF does"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "give its folder"),
        ("config.json", b"{}", "give its folder"),
    ],
)
def test_files_that_are_no_model(tmp_path, name, start, fact):
    (tmp_path / name).write_bytes(start)
    with pytest.raises(ValueError, match=rf"^model: .*got .*{name}.*{fact}"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["model.gguf", "model", "model.bin", "blob.q8"])
def test_a_gguf_file_is_known_by_its_beginning(checkpoint, tmp_path, name):
    folder = checkpoint("llama, grouped, tied")
    model = load(write_gguf(tmp_path / name, folder), progress=False)
    assert model.tokenizer is None
    np.testing.assert_allclose(model.logits([[1, 2, 3]])[0], load(folder, progress=False).logits([[1, 2, 3]])[0], atol=1e-5)


def test_one_part_of_a_gguf_file(checkpoint, tmp_path):
    def split(writer):
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 3)

    path = write_gguf(tmp_path / "model-00002-of-00003.gguf", checkpoint("llama, grouped, tied"), change=split)
    with pytest.raises(ValueError, match=r"^model: .*model-00002-of-00003\.gguf: .*--merge"):
        load(path)


def test_a_folder_of_gguf_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"^model: .*a\.gguf, b\.gguf: name one"):
        load(tmp_path)


def test_a_folder_with_a_configuration_and_gguf_files_only(llama):
    (llama / "model.safetensors").unlink()
    (llama / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"^model: .*a folder that holds m\.gguf: name one"):
        load(llama)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-00001-of-00002.safetensors", r".*00002\.safetensors without the index model\.safetensors\.index\.json"),
        ("consolidated.safetensors", r"consolidated\.safetensors only"),
        ("tf_model.h5", r"tf_model\.h5 only"),
    ],
)
def test_weights_under_another_name_are_listed(llama, name, message):
    (llama / "model.safetensors").rename(llama / name)
    with pytest.raises(ValueError, match=rf"^checkpoint: expected model\.safetensors, .*got {message}"):
        load(llama)


def test_an_index_of_nothing(llama):
    (llama / "model.safetensors").unlink()
    for damaged, got in (('{"a": null}', "None for 'a'"), ('{"a": 5}', "5 for 'a'"), ("[]", "list")):
        (llama / "model.safetensors.index.json").write_text(f'{{"weight_map": {damaged}}}')
        with pytest.raises(ValueError, match=rf"^weight_map: .*got {got}"):
            load(llama)
    (llama / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match=r"^weight_map: .*got an empty one"):
        load(llama)


def test_a_name_that_no_file_can_have():
    with pytest.raises(ValueError, match=r"^model: .*where there is nothing"):
        load("x" * 5000)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n".format("0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model", "config.json"])
def test_pointers_of_git_lfs(llama, name):
    (llama / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"expected the file itself, got .*{name}', a pointer of Git LFS: .*git lfs pull"):
        load(llama)


def test_a_pointer_in_place_of_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_text(POINTER)
    with pytest.raises(ValueError, match=r"^model: expected the file itself, got .*model\.gguf', a pointer of Git LFS"):
        load(tmp_path / "model.gguf")


def test_pointers_in_place_of_files_that_are_not_read(llama):
    for name in ("pytorch_model.bin", "model.onnx", "logo.png", "consolidated.safetensors", "training_args.json"):
        (llama / name).write_text(POINTER)
    assert load(llama, progress=False).config.num_layers == 3


def test_a_shard_and_merges_that_are_pointers(llama):
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    save_file(tensors, llama / "a.safetensors")
    (llama / "b.safetensors").write_text(POINTER)
    shards = dict.fromkeys(tensors, "a.safetensors") | {"x": "b.safetensors"}
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"^checkpoint: .*b\.safetensors', a pointer of Git LFS"):
        load(llama)
    (llama / "b.safetensors").unlink()
    save_file(tensors, llama / "model.safetensors")
    (llama / "merges.txt").write_text(POINTER)
    (llama / "vocab.json").write_text("{}")
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (llama / "config.json").write_text(json.dumps(json.loads((llama / "config.json").read_text()) | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"merges\.txt', a pointer of Git LFS"):
        from_folder(llama)


def test_an_adapter_without_its_configuration(llama):
    (llama / "model.safetensors").rename(llama / "adapter_model.safetensors")
    (llama / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^model: .*a PEFT adapter for a model that it does not name"):
        load(llama)


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_of_peft(llama, whole):
    (llama / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    if not whole:
        (llama / "model.safetensors").rename(llama / "adapter_model.safetensors")
        (llama / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^model: .*a PEFT adapter for 'owner/base': .*merge_and_unload"):
        load(llama)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_with_a_mark_of_the_byte_order(llama, encoding):
    expected, path = open_folder(llama)[0], llama / "config.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert open_folder(llama)[0] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "model_type: .*gemma2, gemma3, .*, got 'bert'"),
        ({"hidden_size": -4}, "hidden_size: expected a whole number of at least 1, got -4"),
        ({"hidden_act": "relu9"}, "hidden_act: expected one of silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: .*implemented, got 'dynamic'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of the 4 heads, got 3"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers: expected a whole number of at least 1, got 2.5"),
    ],
)
def test_settings_that_are_not_implemented(llama, settings, message):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ValueError, match=message):
        load(llama)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="model: expected a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json: .*can be read"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "msgpack"])
def test_damaged_files_give_an_error_and_nothing_else(checkpoint, tmp_path, kind):
    """Cut off at many places, and with bytes changed in the part that says what is where."""
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        path.write_bytes((checkpoint("llama, grouped, tied") / "model.safetensors").read_bytes())
        read = Safetensors.of_file
    elif kind == "gguf":
        write_gguf(path, checkpoint("llama, grouped, tied"))
        read = Gguf
    else:
        tree = {"a": {"b": np.ones((3, 4), np.float32)}, "c": {str(k): np.full(5, k, np.float32) for k in range(20)}}
        path.write_bytes(serialization.msgpack_serialize(tree))
        read = Msgpack
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    head = min(len(whole), 4000)

    def attempt(data):
        path.write_bytes(data)
        try:
            tensors = read(path)
            for name in tensors.shapes():
                tensors.read(name)
        except ValueError:
            return False
        return True

    assert attempt(whole)
    for cut in (0, 1, 7, 8, 9, *rng.integers(10, len(whole), 40).tolist()):
        assert not attempt(whole[:cut])
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, head, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        attempt(bytes(data))


def test_every_parameter_has_a_shape_and_a_tensor(kept, checkpoint):
    for name in references.CONFIGS:
        config, tensors = open_folder(checkpoint(name))
        ours, theirs = (sum(map(np.prod, table.values())) for table in (shapes(config), tensors.shapes()))
        assert ours <= theirs


def test_the_fingerprint_tells_checkpoints_apart(llama):
    first, again = load(llama, progress=False).fingerprint, load(llama, progress=False).fingerprint
    edit(llama, lambda tensors: tensors.update({Q: tensors[Q] + np.float32(1e-3)}))
    assert first == again != load(llama, progress=False).fingerprint
    assert len(first) == 16
