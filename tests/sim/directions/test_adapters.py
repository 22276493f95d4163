"""LoRA adapters of PEFT: read as steerings of the down-projection, written back bit for bit, refused if they are more."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sim
import ufm
from sim.directions.adapters import CONFIG, WEIGHTS

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]]
INPUTS, OUTPUTS = 48, 32
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "init_lora_weights": True}


def matrices(*blocks, rank=4, module="model.layers.{}.mlp.down_proj", inputs=INPUTS, dtype=np.float32):
    """The tensors of an adapter, named as PEFT names them."""
    rng = np.random.default_rng(sum(blocks))
    shapes = {"A": (rank, inputs), "B": (OUTPUTS, rank)}
    return {
        f"base_model.model.{module.format(block)}.lora_{letter}.weight": (0.1 * rng.normal(size=shape)).astype(dtype)
        for block in blocks
        for letter, shape in shapes.items()
    }


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter as PEFT does."""

    def write(tensors=None, **changes):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        save_file(matrices(0, 2) if tensors is None else tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(PLAIN | changes))
        return folder

    return write


def by_layer(steering):
    return {part.layer: part.intervention for part in steering.parts}


@pytest.mark.parametrize(("changes", "scale"), [({}, 6 / 4), ({"use_rslora": True}, 6 / 4**0.5), ({"lora_alpha": 16}, 4)])
def test_the_scale_is_folded_in(small, adapter, changes, scale):
    tensors = matrices(0, 2)
    updates = by_layer(sim.read_adapter(adapter(tensors, **changes), small("llama")))
    assert set(updates) == {0, 2}
    for block, update in updates.items():
        a, b = (tensors[f"base_model.model.model.layers.{block}.mlp.down_proj.lora_{letter}.weight"] for letter in "AB")
        assert np.array_equal(update.down, a)
        assert np.abs(update.up - scale * b).max() < 1e-7


def test_a_scale_beyond_float32_is_refused(small, adapter):
    with pytest.raises(ValueError, match=r"^adapter: expected finite numbers, got "):
        sim.read_adapter(adapter(matrices(0), lora_alpha=1e300), small("llama"))


def test_ranks_and_alphas_of_single_modules(small, adapter):
    tensors = matrices(0) | matrices(1, rank=2)
    patterns = {"rank_pattern": {r"layers.1.mlp.down_proj": 2}, "alpha_pattern": {r".*\.0\.mlp\.down_proj": 10}}
    updates = by_layer(sim.read_adapter(adapter(tensors, **patterns), small("llama")))
    names = {block: f"base_model.model.model.layers.{block}.mlp.down_proj.lora_B.weight" for block in (0, 1)}
    assert np.abs(updates[0].up - 10 / 4 * tensors[names[0]]).max() < 1e-7
    assert np.abs(updates[1].up - 6 / 2 * tensors[names[1]]).max() < 1e-7


def test_an_adapter_does_what_changed_weights_do(checkpoint, small, adapter, tmp_path):
    steering = sim.read_adapter(adapter(), small("llama"))
    merged = load_file(checkpoint("llama") / "model.safetensors")
    for block, update in by_layer(steering).items():
        merged[f"model.layers.{block}.mlp.down_proj.weight"] += np.asarray(0.5 * update.up @ update.down)
    (tmp_path / "merged").mkdir()
    save_file(merged, tmp_path / "merged" / "model.safetensors")
    (tmp_path / "merged" / "config.json").write_text((checkpoint("llama") / "config.json").read_text())
    expected = [row[-1] for row in sim.load(tmp_path / "merged", progress=False).logits(PROMPTS)]
    split = small("llama").split(PROMPTS)
    assert np.abs(ufm.steer(split, jnp.arange(2), steering, 0.5) - np.stack(expected)).max() < 1e-4
    assert np.abs(ufm.steer(split, jnp.arange(2), steering, 0.0) - np.stack(expected)).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "module"), [("llama", "model.layers.{}.mlp.down_proj"), ("gpt2", "transformer.h.{}.mlp.c_proj")]
)
def test_what_is_written_comes_back_bit_for_bit(small, tmp_path, name, module):
    lm, rng = small(name), np.random.default_rng(1)
    inputs, outputs = lm.split(PROMPTS).sites["mlp_down"]
    updates = {
        layer: ufm.LoRA(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rank, inputs), (outputs, rank))))
        for layer, rank in ((1, 3), (2, 5))
    }
    folder = sim.write_adapter(ufm.Steering(updates, site="mlp_down"), tmp_path / "new" / "adapter", lm)
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS}
    assert [file.name for file in folder.parent.iterdir()] == ["adapter"]
    for layer, update in by_layer(sim.read_adapter(folder, lm)).items():
        assert np.asarray(update.down).tobytes() == np.asarray(updates[layer].down).tobytes()
        assert np.asarray(update.up).tobytes() == np.asarray(updates[layer].up).tobytes()
    assert json.loads((folder / CONFIG).read_text())["target_modules"] == [module.format(1), module.format(2)]


def test_the_folder_may_be_the_one_we_are_in(small, tmp_path, monkeypatch):
    lm = small("llama")
    update = ufm.LoRA(np.ones((4, lm.config.d_mlp), np.float32), np.ones((lm.config.d_model, 4), np.float32))
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    folder = sim.write_adapter(sim.Steering({0: update}, site="mlp_down"), ".", lm)
    assert sorted(file.name for file in folder.iterdir()) == sorted([CONFIG, WEIGHTS])
    assert set(by_layer(sim.read_adapter(folder, lm))) == {0}


def test_a_link_to_an_empty_folder_stays_one(small, tmp_path):
    lm = small("llama")
    update = ufm.LoRA(np.ones((4, lm.config.d_mlp), np.float32), np.ones((lm.config.d_model, 4), np.float32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    sim.write_adapter(sim.Steering({0: update}, site="mlp_down"), tmp_path / "link", lm)
    assert (tmp_path / "link").is_symlink()
    assert set(by_layer(sim.read_adapter(tmp_path / "link", lm))) == {0}


def test_half_types_and_other_prefixes_are_read(small, adapter):
    tensors = matrices(1, module="language_model.model.layers.{}.mlp.down_proj", dtype=ml_dtypes.bfloat16)
    (update,) = by_layer(sim.read_adapter(adapter(tensors), small("llama"))).values()
    (a, b) = (tensor.astype(np.float32) for tensor in tensors.values())
    assert np.array_equal(update.down, a)
    assert np.array_equal(update.up, np.float32(1.5) * b)


OF_ATTENTION = matrices(0) | matrices(0, module="model.layers.{}.self_attn.q_proj")
OF_THE_HEAD = {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}
WITH_MAGNITUDES = {"base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector": np.ones(3, np.float32)}
HALF = dict(list(matrices(0).items())[:1])
NOT_FINITE = {name: tensor * np.float32(np.nan) for name, tensor in matrices(0).items()}


@pytest.mark.parametrize(
    ("tensors", "changes", "expected"),
    [
        (OF_ATTENTION, {}, "of the modules mlp.down_proj .*also self_attn.q_proj in .*merge_and_unload"),
        (OF_THE_HEAD, {}, "also base_model.model.lm_head.weight"),
        (WITH_MAGNITUDES, {}, "also mlp.down_proj.lora_magnitude"),
        (None, {"use_dora": True}, "plain LoRA, got one with DoRA"),
        (None, {"modules_to_save": ["lm_head"], "lora_bias": True}, "one with biases, modules saved whole"),
        (None, {"peft_type": "IA3"}, "peft_type \"LORA\", got 'IA3'"),
        (None, {"peft_type": None}, 'peft_type "LORA", got None'),
        (None, {"init_lora_weights": "pissa"}, "'pissa', which changes the weights of the model too"),
        (None, {"r": 8}, "rank 8 at model.layers.0.mlp.down_proj, as adapter_config.json says, got 4"),
        (None, {"r": 0}, "r in adapter_config.json: expected a positive number, got 0"),
        (None, {"lora_alpha": None}, "lora_alpha in adapter_config.json: expected a positive number, got None"),
        (None, {"rank_pattern": [1]}, r"numbers by module as rank_pattern in adapter_config.json, got \[1\]"),
        (None, {"alpha_pattern": {"x[": 3}}, r"regular expressions in alpha_pattern of adapter_config.json, got 'x\['"),
        (None, {"use_rslora": "no"}, "use_rslora in adapter_config.json true or false, got 'no'"),
        (matrices(0, inputs=40), {}, r"A \[r, 48\] and B \[32, r\], as the model has them, got A \(4, 40\)"),
        (matrices(0, 3), {}, "blocks 0 to 2, the model's, got block 3"),
        (HALF, {}, "both A and B of every module, got only A of model.layers.0"),
        (NOT_FINITE, {}, "lora_A of model.layers.0.* finite numbers, got nan"),
        ({}, {}, "and of no others, got none in"),
    ],
)
def test_what_is_more_than_lora_of_the_down_projection_is_refused(small, adapter, tensors, changes, expected):
    folder = adapter(tensors, **changes)
    with pytest.raises(ValueError, match=expected):
        sim.read_adapter(folder, small("llama"))


def test_folders_that_are_not_whole_are_refused(small, adapter, tmp_path):
    folder, lm = adapter(), small("llama")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match="adapter: expected a whole safetensors file"):
        sim.read_adapter(folder, lm)
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"^adapter: expected the file itself, got .*a pointer of Git LFS"):
        sim.read_adapter(folder, lm)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pickle adapter_model\.bin: .*PEFT"):
        sim.read_adapter(folder, lm)
    for missing in (tmp_path, tmp_path / "none", folder / CONFIG):
        with pytest.raises(ValueError, match=r"adapter: expected a folder with adapter_config.json"):
            sim.read_adapter(missing, lm)


def lora(inputs=INPUTS):
    return ufm.LoRA(np.ones((2, inputs)), np.ones((OUTPUTS, 2)))


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        (ufm.Steering({1: ufm.Add(np.ones(OUTPUTS))}, site="mlp_down"), 'LoRA with a layer each at the site "mlp_down"'),
        (ufm.Steering({1: ufm.Add(np.ones(OUTPUTS))}), "LoRA with a layer each"),
        (ufm.Steering({1: lora(9)}, site="mlp_down"), "from 48 to 32 numbers"),
        (ufm.Steering({5: lora()}, site="mlp_down"), "a block from 0 to 2"),
        (ufm.Steering(lora(), site="mlp_down"), "LoRA with a layer each"),
        (ufm.Steering({1: [lora(), lora()]}, site="mlp_down"), "several at layer 1"),
        (ufm.Steering({1: lora()}, site="mlp_down", tokens=ufm.Last()), "LoRA with a layer each"),
    ],
)
def test_other_steerings_are_not_written(small, tmp_path, steering, expected):
    with pytest.raises(ValueError, match=expected):
        sim.write_adapter(steering, tmp_path / "adapter", small("llama"))
    assert not [*tmp_path.iterdir()]


def test_nothing_is_written_over(small, adapter):
    folder = adapter()
    steering = sim.read_adapter(folder, small("llama"))
    with pytest.raises(ValueError, match=r"^folder: .*empty"):
        sim.write_adapter(steering, folder, small("llama"))
