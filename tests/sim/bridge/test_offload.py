"""Matrices of blocks in the memory of the host: the same numbers, and no more of them on the device than is said."""

import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge import devices, offload, sharding
from sim.bridge.architectures import from_config
from sim.bridge.model import load, random_model
from sim.bridge.offload import HOST, bytes_on_host
from sim.bridge.parameters import is_block_matrix, parameter_bytes
from sim.bridge.sharding import BLOCKS_AT_ONCE, bytes_on_each
from ufm import Add, LoRA, Steering

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6]]
CONFIG = from_config(
    {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
)
FAMILIES = ("gpt2, untied, gelu", "gemma3")


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, checkpoint, small):
    """A model on the device, and the same with its blocks on the host."""
    with jax.enable_x64(False):
        return small(request.param), load(checkpoint(request.param), offload=True, progress=False)


def kinds(lm):
    return {name: value.sharding.memory_kind for name, value in lm.parameters.items()}


def test_only_matrices_of_blocks_are_on_the_host(both):
    lm, offloaded = both
    assert kinds(lm).keys() == kinds(offloaded).keys()
    for name, kind in kinds(offloaded).items():
        assert (kind == HOST) == is_block_matrix(lm.config, name), name
    assert HOST not in kinds(lm).values()
    assert offloaded.fingerprint == lm.fingerprint
    assert offloaded.decoder.offloaded
    assert not lm.decoder.offloaded


def test_the_same_numbers_to_the_bit(both):
    lm, offloaded = both
    v = jnp.linspace(-1, 1, lm.config.d_model)

    def numbers(model):
        split = model.split(PROMPTS, 1)
        yield from model.logits(PROMPTS)
        yield model.states(PROMPTS)[0]
        yield ufm.divergence(split, [0, 1], Steering({1: Add(v)}, tokens=ufm.Last()), np.linspace(-2, 2, 5))
        capped = model.generate(PROMPTS, steering=Steering({0: Add(v)}, budget=0.1), alpha=2.0, max_new_tokens=6)
        yield from (capped.tokens, capped.costs)

    for a, b in zip(numbers(lm), numbers(offloaded), strict=True):
        np.testing.assert_array_equal(
            np.concatenate([np.ravel(row) for row in a]), np.concatenate([np.ravel(row) for row in b])
        )


def test_derivatives_in_both_modes_and_of_an_update(both):
    lm, offloaded = both
    rng = np.random.default_rng(0)
    update = LoRA(
        *(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, lm.config.d_mlp), (lm.config.d_model, 2)))
    )

    def derivatives(model):
        split = model.split(PROMPTS, site="mlp_down").at(0)

        def loss(update, alpha):
            logits = ufm.steer(split, jnp.arange(2), Steering(update, site="mlp_down"), alpha)
            return jnp.sum(jax.nn.log_softmax(logits)[:, 3])

        yield from jax.tree.leaves(jax.jit(jax.grad(loss))(update, 0.5))
        yield jax.jit(jax.jacfwd(loss, argnums=1))(update, 0.5)

    for a, b in zip(derivatives(lm), derivatives(offloaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_bytes_on_a_device_and_on_the_host():
    config = replace(CONFIG, num_layers=9)
    of_a_block = sum(
        value.nbytes // 9
        for name, value in random_model(config, jax.random.key(0)).parameters.items()
        if is_block_matrix(config, name)
    )
    assert bytes_on_host(config, jnp.float32) == 9 * of_a_block
    assert bytes_on_host(config, jnp.float32, copies=3) == 27 * of_a_block
    saved = parameter_bytes(config, jnp.float32) - bytes_on_each(config, jnp.float32, offload=True)
    assert saved == (9 - BLOCKS_AT_ONCE) * of_a_block


def test_of_a_card_comes_one_matrix_at_a_time():
    """As programs for a card are written, on any machine: all that is brought to the device are matrices of one block."""
    lm = random_model(CONFIG, jax.random.key(0), offload=True)
    split = lm.split(PROMPTS)

    def loss(v, split):
        return jnp.sum(ufm.steer(split.at(2), jnp.arange(2), Add(v), 1.0))

    programs = {
        "states": (lambda split: split.at(jnp.asarray(1)).embed(jnp.arange(2)).stream, split),
        "gradient": (lambda split: jax.grad(loss)(jnp.ones(CONFIG.d_model), split), split),
    }
    shapes = {f"tensor<{a}x{b}xf32>" for a, b in ((64, 64), (64, 192), (192, 64))}
    for name, (program, argument) in programs.items():
        text = jax.jit(program).trace(argument).lower(lowering_platforms=("cuda",)).as_text()
        brought = re.findall(r"annotate_device_placement\(.*?: \((tensor<[^>]*>)\)", text)
        assert set(brought) == shapes, name


def test_a_checkpoint_of_ours_and_half_types(small, tmp_path):
    lm = small("llama, grouped, tied")
    lm.save(tmp_path / "saved")
    offloaded = load(tmp_path / "saved", offload=True, progress=False)
    assert set(kinds(offloaded).values()) == {"device", HOST}
    np.testing.assert_array_equal(offloaded.logits(PROMPTS)[0], lm.logits(PROMPTS)[0])
    offloaded.save(tmp_path / "again")
    assert load(tmp_path / "again", progress=False).fingerprint == offloaded.fingerprint
    half = load(tmp_path / "saved", dtype="bfloat16", offload=True, progress=False)
    whole = load(tmp_path / "saved", dtype="bfloat16", progress=False)
    np.testing.assert_array_equal(half.logits(PROMPTS)[0], whole.logits(PROMPTS)[0])
    as_float = half.with_dtype("float32")
    assert as_float.decoder.offloaded
    np.testing.assert_array_equal(as_float.logits(PROMPTS)[0], whole.with_dtype("float32").logits(PROMPTS)[0])


def memory(model, *, rematerialised=False):
    """Bytes that a gradient of log-probabilities with respect to a vector takes beside its arguments."""
    split = replace(model.split([list(range(40))] * 4, last_only=False).at(0), rematerialised=rematerialised)

    @jax.jit
    def gradient(split, v):
        def loss(v):
            return jnp.sum(jax.nn.log_softmax(ufm.steer(split.at(0), jnp.arange(4), Add(v), 1.0))[..., 3])

        return jax.grad(loss)(v)

    analysis = gradient.lower(split, jnp.ones(model.config.d_model)).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_what_reverse_mode_keeps():
    """Of each block the stream before it alone, and none of its matrices, where blocks are computed again."""
    layers = 12
    config = replace(CONFIG, num_layers=layers)
    lm = random_model(config, jax.random.key(0))
    kept, again = memory(lm), memory(lm, rematerialised=True)
    stream = 4 * 4 * 40 * config.d_model
    of_blocks = layers * 2 * stream  # the streams, and room for one more of each
    assert again < memory(random_model(replace(config, num_layers=2), jax.random.key(0)), rematerialised=True) + of_blocks
    assert kept > again + (layers - 2) * 4 * stream


def test_refusals(checkpoint, monkeypatch):
    folder = checkpoint("llama, grouped, tied")
    monkeypatch.setattr(devices, "free", lambda device: 1000)
    with pytest.raises(ValueError, match=r"^model: .*at least 0.1 MiB free"):
        load(folder, offload=True, progress=False)
    other = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind="device")], device_kind="an abacus")
    other.memory_stats, other.platform = lambda: None, "abacus"
    monkeypatch.undo()
    monkeypatch.setattr(devices, "default_device", lambda: other)
    with pytest.raises(ValueError, match=r"^offload: .*pinned_host.*got an abacus with device$"):
        load(folder, offload=True, progress=False)


def test_a_release_that_brings_a_wrong_block_is_refused(monkeypatch):
    monkeypatch.setattr(offload, "to_device", lambda stacked, i: stacked[i - 2])
    with pytest.raises(ValueError, match=r"^offload: expected a release of JAX that brings the right block"):
        random_model(CONFIG, jax.random.key(0), offload=True)


def test_only_where_the_device_has_no_room(checkpoint, monkeypatch):
    folder = checkpoint("llama, grouped, tied")
    assert not load(folder, offload=None, progress=False).decoder.offloaded
    size = bytes_on_each(load(folder, progress=False).config, "float32")
    monkeypatch.setattr(devices, "free", lambda device: size)
    assert not load(folder, offload=None, progress=False).decoder.offloaded
    monkeypatch.setattr(devices, "free", lambda device: size - 1)
    monkeypatch.setattr(sharding, "BLOCKS_AT_ONCE", 2)
    assert load(folder, offload=None, progress=False).decoder.offloaded


def test_a_limit_of_pinned_memory_is_named(monkeypatch):
    card = SimpleNamespace(platform="gpu", device_kind="a card", memory_stats=lambda: None)
    devices.require_pinned("offload", 64 * 2**30, card)
    with pytest.raises(ValueError, match=r"^offload: expected XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB=66 or more .*got 64$"):
        devices.require_pinned("offload", 64 * 2**30 + 1, card)
    monkeypatch.setenv(devices.PINNED, "200")
    devices.require_pinned("offload", 190 * 2**30, card)
