"""Vectors and adapters through the code of others: repeng, steering-vectors, PEFT and llama.cpp, where they are installed.

    python -m pytest -m interop tests/sim/directions

Small random models stand for real ones, but for llama.cpp, which steers SmolLM2.
"""

import ctypes

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

import sim
import ufm
from sim.bridge import fetch
from sim.checks.concept_texts import JOY
from sim.directions.vector import ModelTag, SteeringVector
from tests.sim.bridge.gguf_files import written

pytestmark = [
    pytest.mark.interop,
    # What others' code warns of is theirs.
    pytest.mark.filterwarnings("ignore"),
]

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
WIDTH, LAYERS = 32, 3
CLOSE = 1e-4
"""Of logits, absolute: what float32 allows two libraries."""


@pytest.fixture
def vector():
    rng = np.random.default_rng(2)
    return SteeringVector({layer: rng.normal(size=WIDTH) for layer in (1, 2)}, "joy", ModelTag(family="llama"))


@pytest.fixture
def repeng(monkeypatch):
    """The library, which was written for a NumPy that had this name."""
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    return pytest.importorskip("repeng")


@pytest.fixture
def theirs(checkpoint):
    """The small model in transformers."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()


def logits_of(model):
    """The logits of the last position, by a model of torch."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0, -1])


def steered(lm, steering, alpha):
    """The logits of the last position, by us."""
    return np.asarray(ufm.steer(lm.split([TOKENS]), jnp.arange(1), steering, alpha))[0]


# --- repeng --------------------------------------------------------------------------------------------------------------


def test_repeng_reads_what_we_write_and_we_what_it_writes(repeng, vector, tmp_path):
    read = repeng.ControlVector.import_gguf(sim.write_vector(vector, tmp_path / "ours.gguf"))
    assert read.model_type == "llama"
    assert {layer: v.tobytes() for layer, v in read.directions.items()} == {
        layer: v.tobytes() for layer, v in vector.directions.items()
    }
    # As it trains them: from the last layer down, to layer 1.
    directions = {layer: np.float32(layer) * vector[1] for layer in (2, 1)}
    repeng.ControlVector("llama", directions).export_gguf(tmp_path / "theirs.gguf")
    assert sim.read_vector(tmp_path / "theirs.gguf") == SteeringVector(directions, "theirs", ModelTag(family="llama"))


def test_repeng_steers_as_we_do(repeng, vector, theirs, small, tmp_path):
    read = repeng.ControlVector.import_gguf(sim.write_vector(vector, tmp_path / "v.gguf"))
    model = repeng.ControlModel(theirs, [1, 2])
    model.set_control(read, 0.5)
    expected = logits_of(model)
    assert np.abs(steered(small("llama"), vector.steering(), 0.5) - expected).max() < CLOSE
    shifted = SteeringVector({layer - 1: v for layer, v in vector.directions.items()})
    assert np.abs(steered(small("llama"), shifted.steering(), 0.5) - expected).max() > 100 * CLOSE


def test_repeng_looks_at_the_states_that_we_look_at(repeng, theirs, small):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def tokenizer(batch, **_):
        ids = torch.tensor([TOKENS] * len(batch))
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    layers = range(LAYERS)
    hidden = repeng.extract.batched_get_hiddens(theirs, tokenizer, ["a text"], layers, 1)
    states = np.asarray(small("llama").states([TOKENS])[0])[:, 0, -1]
    for layer in layers[:-1]:
        assert np.abs(hidden[layer][0] - states[layer]).max() < CLOSE
    # The last of transformers' hidden states is taken after the final norm.
    assert np.abs(hidden[LAYERS - 1][0] - states[-1]).max() > 100 * CLOSE


# --- steering-vectors ----------------------------------------------------------------------------------------------------


def test_steering_vectors_steers_as_we_do(vector, theirs, small, tmp_path):
    library, torch = pytest.importorskip("steering_vectors"), pytest.importorskip("torch")
    made = library.SteeringVector({layer: torch.tensor(v) for layer, v in vector.directions.items()}, "decoder_block")
    # It keeps pickles only: arrays are the way over.
    np.savez(tmp_path / "v.npz", **{f"direction.{layer}": v.numpy() for layer, v in made.layer_activations.items()})
    read = sim.read_vector(tmp_path / "v.npz", small("llama"))
    with made.apply(theirs, multiplier=0.5):
        expected = logits_of(theirs)
    assert np.abs(steered(small("llama"), read.steering(), 0.5) - expected).max() < CLOSE
    ours = np.load(sim.write_vector(vector, tmp_path / "ours.npz"))
    back = library.SteeringVector({layer: torch.tensor(ours[f"direction.{layer}"]) for layer in vector.layers})
    assert all(back.layer_activations[layer].numpy().tobytes() == v.tobytes() for layer, v in vector.directions.items())


def test_a_pickle_of_steering_vectors_is_refused_with_what_to_do(vector, tmp_path):
    library, torch = pytest.importorskip("steering_vectors"), pytest.importorskip("torch")
    torch.save(library.SteeringVector({1: torch.tensor(vector[1])}), tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"pickle.*vector\.layer_activations"):
        sim.read_vector(tmp_path / "v.pt")


# --- PEFT ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_does_what_peft_does(small, checkpoint, tmp_path, name, rslora):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name)).eval()
    unsteered = logits_of(base)
    module = "mlp.c_proj" if name == "gpt2" else "down_proj"
    patterns = {"rank_pattern": {f"2.{module}" if name == "gpt2" else f"layers.2.mlp.{module}": 2}}
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=[module], use_rslora=rslora, **patterns)
    model = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    lm, expected = small(name), logits_of(model)
    steering = sim.read_adapter(tmp_path / "adapter", lm)
    assert [part.intervention.down.shape[0] for part in steering.parts] == [4, 4, 2]
    assert np.abs(steered(lm, steering, 1.0) - expected).max() < CLOSE
    assert np.abs(unsteered - expected).max() > 100 * CLOSE

    written = sim.write_adapter(steering, tmp_path / "ours", lm)
    again = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name))
    assert np.abs(logits_of(peft.PeftModel.from_pretrained(again, written).eval()) - expected).max() < CLOSE


# --- llama.cpp -----------------------------------------------------------------------------------------------------------

PROMPTS = [
    "When I think about tomorrow, I feel",
    "The weather today is",
    "My neighbour told me that",
    "I opened the letter and",
]
BLOCK, ALPHA = 20, 2.0


def rows_of(path, blocks, width):
    """The buffer that llama.cpp's `common_control_vector_load` makes of a file: row N - 1 is direction.N."""
    rows = np.zeros((blocks, width), np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        kind, _, number = tensor.name.partition(".")
        assert (kind, tensor.tensor_type) == ("direction", gguf.GGMLQuantizationType.F32)
        rows[int(number) - 1] += tensor.data
    return rows


def in_float32(path, target):
    """The file of a model with all tensors in float32, so that llama.cpp does not multiply with quantised activations."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            of_array = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            value = 0 if name == "general.file_type" else entry.contents()
            writer.add_key_value(name, value, entry.types[0], of_array)
    for tensor in reader.tensors:
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in tensor.shape[::-1]]))
    written(writer)
    return target


def logits_of_llama(llama, ids):
    """The logits of the last position, ``[n, V]``, by llama.cpp."""
    rows = []
    for row in ids:
        llama.reset()
        llama.eval(row)
        rows.append(np.array(llama.scores[len(row) - 1]))
    return np.stack(rows)


def agreement(changes, expected):
    """The correlation of changes of logits, each prompt's mean taken out, and the ratio of their sizes."""
    x, y = (change - change.mean(axis=1, keepdims=True) for change in (changes, expected))
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())), float(np.sqrt((x**2).sum() / (y**2).sum()))


QUANTISED = {"correlation": 0.99, "ratio": 0.1}
"""What is asked of the file as it is: llama.cpp rounds activations to 8 bits, and its logits are off by up to 0.6 of 20."""
IN_FLOAT32 = {"correlation": 0.99999, "ratio": 0.001}


@pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")
@pytest.mark.parametrize("expected", [QUANTISED, IN_FLOAT32], ids=["quantised", "float32"])
def test_llama_cpp_steers_as_we_do(tmp_path, capsys, expected):
    llama_cpp = pytest.importorskip("llama_cpp")
    lm = sim.load(fetch.NAME, progress=False)
    joy = sim.make_vector(lm, JOY.positive, JOY.negative, layers=[BLOCK], name="joy")
    sweep = ufm.sweep(lm.split(PROMPTS), np.arange(len(PROMPTS)), joy.steering(), np.array([0, ALPHA]), lambda y, _: y)
    ours = np.asarray(sweep[:, 1] - sweep[:, 0])

    model = fetch.default_model() if expected is QUANTISED else in_float32(fetch.default_model(), tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(model), n_ctx=64, logits_all=True, verbose=False)
    ids, a = [lm.tokenizer.encode(prompt) for prompt in PROMPTS], lm.config
    before, figures = logits_of_llama(llama, ids), {}
    for shift in (0, -1, 1):
        moved = joy if shift == 0 else SteeringVector({BLOCK + shift: joy[BLOCK]})
        path = sim.write_vector(moved, tmp_path / f"{shift}.gguf")
        rows = np.float32(ALPHA) * rows_of(path, a.num_layers - 1, a.d_model)
        data = rows.ravel().ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert llama_cpp.llama_set_adapter_cvec(llama.ctx, data, rows.size, a.d_model, 1, a.num_layers) == 0
        figures[shift] = agreement(logits_of_llama(llama, ids) - before, ours)
    with capsys.disabled():
        off = np.abs(before - np.asarray(sweep[:, 0])).max()
        print(f"\nunsteered logits are off by {off:.2g}; correlation and ratio of changes by shift: {figures}")
    (correlation, ratio), *shifted = (figures[shift] for shift in (0, -1, 1))
    assert correlation > expected["correlation"]
    assert abs(ratio - 1) < expected["ratio"]
    assert max(other for other, _ in shifted) < correlation - 0.01
