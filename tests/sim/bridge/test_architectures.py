"""Configurations and files as they are out there: what is absent, null, spelt otherwise, or stored in another layout."""

import importlib.util
import json
import math
import shutil
import warnings
from dataclasses import asdict, replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ufm
from sim.bridge.architectures import DEFAULTS, FAMILIES, from_config
from sim.bridge.model import load, random_model
from sim.bridge.readout import readout
from sim.bridge.rope import Rope
from sim.bridge.weights.gguf_file import Gguf
from sim.bridge.weights.hf import load_params, open_folder
from tests.sim.bridge import references
from tests.sim.bridge.gguf_files import written

# --- settings that are absent -----------------------------------------------------------------------------------------

TRANSFORMERS = {
    # family: vocabulary, width, hidden, layers, heads, kv_heads, head_dim, context, eps, activation, theta, tied
    "gpt2": (50257, 768, 3072, 12, 12, 12, 64, 1024, 1e-5, "gelu_tanh", None, True),
    "llama": (32000, 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, "silu", 1e4, False),
    "mistral": (32000, 4096, 14336, 32, 32, 8, 128, 131072, 1e-6, "silu", 1e4, False),
    "qwen2": (151936, 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, "silu", 1e4, False),
    "qwen3": (151936, 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, "silu", 1e4, False),
    "gemma": (256000, 3072, 24576, 28, 16, 16, 256, 8192, 1e-6, "gelu_tanh", 1e4, True),
    "gemma2": (256000, 2304, 9216, 26, 8, 4, 256, 8192, 1e-6, "gelu_tanh", 1e4, True),
    "gemma3_text": (262208, 2304, 9216, 26, 8, 4, 256, 131072, 1e-6, "gelu_tanh", 1e6, True),
    "olmo2": (50304, 4096, 11008, 32, 32, 32, 128, 2048, 1e-5, "silu", 1e4, False),
    "smollm3": (128256, 2048, 11008, 36, 16, 4, 128, 32768, 1e-6, "silu", 2e6, True),
    "phi3": (32064, 3072, 8192, 32, 32, 32, 96, 4096, 1e-5, "silu", 1e4, False),
    "granite": (32000, 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, "silu", 1e4, False),
    "gpt_neox": (50432, 6144, 24576, 44, 64, 64, 96, 2048, 1e-5, "gelu", 1e4, False),
}
"""What transformers 5 takes for a configuration that says nothing but its `model_type`."""


def empty(family, **settings):
    return from_config({"model_type": family, **settings})


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_what_is_absent_is_what_transformers_takes(family):
    a = empty(family)
    fields = (
        a.vocab_size,
        a.d_model,
        a.d_mlp,
        a.num_layers,
        a.num_heads,
        a.num_kv_heads,
        a.head_dim,
        a.max_seq_len,
        a.eps,
        a.activation,
    )
    assert (*fields, a.rope.theta if a.rope else None, a.tied) == TRANSFORMERS[family]
    biased = {"gpt2": (True, True, True), "qwen2": (True, False, False), "gpt_neox": (True, True, True)}
    assert (a.qkv_bias, a.out_bias, a.mlp_bias) == biased.get(family, (False, False, False))
    windows = {"mistral": {4096}, "gemma2": {4096, None}, "gemma3_text": {4096, None}}
    assert set(a.windows) == windows.get(family, {None})
    assert len(a.windows) == a.num_layers


def test_other_settings_that_are_absent():
    gemma2, gemma3, granite, neox = (empty(name) for name in ("gemma2", "gemma3_text", "granite", "gpt_neox"))
    assert (gemma2.attention_softcap, gemma2.final_softcap, gemma2.query_scale) == (50, 30, 1 / 16)
    assert gemma2.windows[:4] == (4096, None, 4096, None)
    assert (gemma3.attention_softcap, gemma3.final_softcap, gemma3.local_rope.theta) == (None, None, 1e4)
    assert gemma3.windows[:7] == (4096,) * 5 + (None, 4096)
    assert (granite.query_scale, granite.embedding_scale, granite.residual_scale, granite.logit_scale) == (1, 1, 1, 1)
    assert (neox.parallel_residual, neox.rope.fraction, neox.rope.pairs(neox.head_dim)) == (True, 0.25, 12)
    assert empty("smollm3").nope_layers == tuple(range(3, 36, 4))


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma3"}))
def test_defaults_are_those_of_transformers(family):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family)
    rotary = getattr(theirs, "rope_parameters", None) or {}
    whole, local = rotary.get("full_attention", rotary), rotary.get("sliding_attention", {})
    renamed = {"rope_theta": whole.get("rope_theta"), "rotary_emb_base": whole.get("rope_theta")}
    renamed |= {"rotary_pct": whole.get("partial_rotary_factor"), "rope_local_base_freq": local.get("rope_theta")}
    renamed |= {"partial_rotary_factor": whole.get("partial_rotary_factor"), "sliding_window_pattern": 6}
    if family in ("qwen2", "qwen3"):
        renamed["sliding_window"] = AutoConfig.for_model(family, use_sliding_window=True).sliding_window
    for key, value in DEFAULTS[family].items():
        reference = renamed.get(key) if key in renamed else getattr(theirs, key, None)
        if hasattr(theirs, key) or key in renamed:
            derived = value is None and key in ("num_key_value_heads", "head_dim")
            assert derived or reference == value, key


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", {"head_dim": None, "num_key_value_heads": None}, {"head_dim": 128, "num_kv_heads": 32}),
        ("mistral", {"sliding_window": None}, {"windows": (None,) * 32}),
        ("smollm3", {"num_key_value_heads": None}, {"num_kv_heads": 16}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"final_softcap": None}),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, {"attention_softcap": None}),
        ("gemma3_text", {"final_logit_softcapping": 5.0}, {"final_softcap": 5.0}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, {"windows": (None,) * 32}),
        ("gpt2", {"n_inner": None}, {"d_mlp": 3072}),
        ("gpt2", {"hidden_size": 24, "num_hidden_layers": 2}, {"d_model": 24, "num_layers": 2}),
        ("gpt2", {"scale_attn_weights": False}, {"query_scale": 1.0}),
        ("gemma2", {"hidden_act": "gelu"}, {"activation": "gelu_tanh"}),
        ("gemma", {"hidden_act": "gelu"}, {"activation": "gelu_tanh"}),
        ("llama", {"hidden_act": "gelu_fast"}, {"activation": "gelu_tanh"}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, {"windows": (4096,) * 32}),
        ("llama", {"rope_scaling": None, "rope_parameters": None, "rope_theta": 5.0}, {"rope": Rope(5.0)}),
        ("granite", {"logits_scaling": 4, "residual_multiplier": 0.5}, {"logit_scale": 0.25, "residual_scale": 0.5}),
    ],
)
def test_null_and_other_names(family, settings, expected):
    fields = vars(empty(family, **settings))
    assert {key: fields[key] for key in expected} == expected


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
TWO_FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps"),
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("llama", {"attention_bias": None}, "attention_bias"),
        ("llama", {"hidden_act": "mish"}, "hidden_act"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma3_text", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 32}, "sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama", {"rope_theta": None}, "rope_theta"),
        ("mixtral", {}, "a mixture of experts"),
        (["llama"], {}, "model_type"),
        ("llama", {"rope_scaling": {"type": ["yarn"]}}, "rope_type"),
        ("qwen2", {"layer_types": [["full_attention"]] * 32}, "layer_types"),
        ("qwen3_moe", {}, "a mixture of experts"),
        ("llama", {"num_local_experts": 8}, "a mixture of experts"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ("llama", {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 8}}, "factor"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", **YARN, "beta_fast": 1e-320}},
            "^beta_fast: expected a number of turns in 32",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", **YARN, "beta_slow": 1e308}},
            "^beta_slow: expected a number of turns in 32",
        ),
        ("llama", {"rope_scaling": "linear"}, "^rope_scaling: expected an object of settings, got str"),
        ("llama", {"rope_parameters": "linear"}, "^rope_parameters: expected an object of settings, got str"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_parameters"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}}, "short_factor"),
        (
            "llama",
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "quantised with awq; load an unquantised or GGUF",
        ),
        (
            "llama",
            {"quantization_config": {"load_in_4bit": True}},
            "quantised with bitsandbytes; load an unquantised or GGUF",
        ),
        ("gemma3", {"text_config": {}, "quantization_config": {"quant_method": "fp8"}}, "quantised with fp8"),
        ("llama", {"quantization": {"group_size": 64, "bits": 4}}, "^quantization: quantised with MLX; load"),
        ("llama", {"compression_config": {"quant_method": "ct"}}, "^compression_config: quantised with ct"),
        ("llama", {"num_experts": "8"}, "^num_experts: expected a whole number"),
        ("llama", {"num_hidden_layers": 10**13}, "^num_hidden_layers: expected at most 65536 layers, got 10000000000000"),
        ("gpt2", {"n_layer": 10**13}, "^n_layer: expected at most 65536 layers"),
        ("gemma3", {"text_config": {"num_hidden_layers": 10**13}}, "^num_hidden_layers: expected at most 65536 layers"),
        ("llama", {"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "^high_freq_factor: .*above .* 4"),
        ("llama", {"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 5.0}}, "^high_freq_factor: .*above .* 5"),
        ("llama", {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", **YARN}}, "^rope_theta: expected a number above 1"),
        (
            "phi3",
            {"original_max_position_embeddings": 1, "rope_scaling": {"type": "su", **TWO_FACTORS}},
            "^original_max_position_embeddings: expected at least 2, for longrope",
        ),
    ],
)
def test_settings_that_are_refused(family, settings, message):
    with pytest.raises(ValueError, match=message):
        empty(family, **settings)


def test_the_flag_of_a_multimodal_model_is_that_of_the_whole():
    assert empty("gemma3", text_config={"tie_word_embeddings": False}).tied
    assert not empty("gemma3", text_config={}, tie_word_embeddings=False).tied


# --- rotary positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}, Rope(1e4, "linear", 2.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}, Rope(7.0, "linear", 2.0)),
        ({"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2}}, Rope(9.0, "linear", 2.0)),
        ({"rope_theta": 9.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, Rope(7.0)),
        ({"rope_scaling": {"rope_type": None}}, Rope(1e4)),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN}},
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 32, attention_factor=0.1 * math.log(4) + 1),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN, "attention_factor": 1.5, "beta_fast": None}},
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 32, attention_factor=1.5),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN, "attention_factor": 0, "truncate": None, "beta_slow": 0}},
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 32, attention_factor=0.0, truncated=False),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN, "mscale": 0, "mscale_all_dim": 0.0}},
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 32, attention_factor=0.1 * math.log(4) + 1),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN}, "original_max_position_embeddings": 16},
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 16, attention_factor=0.1 * math.log(4) + 1),
        ),
    ],
)
def test_rotary_settings_in_every_spelling(settings, expected):
    assert empty("llama", **settings).rope == expected


def test_longrope_under_its_older_names():
    listed = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    a = empty("phi3", max_position_embeddings=131_072, rope_scaling={"type": "su", **listed})
    assert (a.rope.scaling, a.rope.original_context_length, a.longrope_switch_length) == ("longrope", 4096, 4096)
    assert a.rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert empty("phi3", max_position_embeddings=131_072, rope_scaling={"type": "yarn", **listed}).rope == a.rope
    # A context that stays within the original one.
    assert empty("phi3", rope_scaling={"type": "su", **listed}).longrope_switch_length is None


def test_gemma_3_in_the_older_spelling():
    a = empty("gemma3_text", rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (a.rope, a.local_rope) == (Rope(5e5, "linear", 8.0), Rope(2e4))


def test_a_factor_without_a_type_is_not_ignored_in_silence():
    with pytest.warns(UserWarning, match="factor of type default is not used"):
        assert empty("llama", rope_scaling={"factor": 2.0}).rope == Rope(1e4)


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", **YARN},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 20, "truncate": False},
        {"rope_type": "yarn", "factor": 0.5, "beta_slow": 3.0},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "longrope", "factor": 3.0, "short_factor": [1.5] * 32, "long_factor": [3.0] * 32},
    ],
)
@pytest.mark.parametrize("long", [False, True])
def test_frequencies_are_those_of_transformers(scaling, long):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 2048}
    theirs = AutoConfig.for_model("llama", **sizes, rope_parameters=dict(scaling))
    length = theirs.rope_parameters.get("original_max_position_embeddings", 0) + 1 if long else None
    expected, size = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu", seq_len=length)
    ours = empty("llama", **sizes, rope_parameters=scaling).rope
    np.testing.assert_allclose(ours.frequencies(64, long=long), expected.numpy(), rtol=2e-6)
    assert ours.attention_factor == pytest.approx(size)


@pytest.mark.parametrize(
    ("truncate", "expected"),
    [
        (True, [0.1, 0.03487106, 0.01162721, 0.003605261, 0.0009730086, 0.0003333804]),
        (False, [0.1, 0.034458, 0.01120795, 0.003325114, 0.0008112905, 0.0003333804]),
    ],
)
def test_yarn_between_the_ends(truncate, expected):
    """Numbers that transformers 5 gave."""
    settings = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "truncate": truncate}
    rope = empty("llama", rope_parameters=settings).rope
    np.testing.assert_allclose(rope.frequencies(64)[8:24:3], expected, rtol=1e-6)
    assert rope.attention_factor == pytest.approx(1.138629436111989)


@pytest.mark.parametrize(("length", "long"), [(40, False), (41, True)])
def test_longrope_changes_beyond_the_original_context(small, length, long):
    decoder = small("phi3, longrope").decoder
    rope, positions = decoder.config.rope, np.arange(length)[None]
    cosines, _ = decoder.rope(jnp.asarray(positions))
    expected = rope.attention_factor * np.cos(positions[0][:, None] * np.asarray(rope.frequencies(8, long=long)))
    np.testing.assert_allclose(cosines[0, 0], expected, atol=1e-5)


def test_a_sequence_has_the_frequencies_of_its_own_length(small):
    """Short and long ones in one batch, as each has them alone."""
    model = small("phi3, longrope")
    rows = [references.tokens(n).tolist() for n in (12, 40, 41, 60)]
    for together, row in zip(model.logits(rows), rows, strict=True):
        np.testing.assert_allclose(together, model.logits([row])[0], atol=2e-5)
    with pytest.raises(ValueError, match=r"max_new_tokens: .*beyond 40 tokens"):
        model.generate([rows[0]], max_new_tokens=40)


@pytest.mark.parametrize("name", ["gpt_neox", "smollm3", "olmo2", "granite", "phi3, longrope", "llama, yarn"])
def test_generation_with_a_cache_is_the_model_again_and_again(small, name):
    model, prompt = small(name), references.tokens(41 if "longrope" in name else 7).tolist()
    tokens = list(model.generate([prompt], max_new_tokens=5).tokens[0])
    again = model.logits([prompt + tokens[:k] for k in range(5)])
    assert [int(np.argmax(logits[-1])) for logits in again] == tokens


# --- steering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt_neox", "gpt_neox, in series", "granite", "olmo2"])
def test_both_sites_of_a_block_give_the_model_again(small, name):
    model, row = small(name), references.tokens(9).tolist()
    whole = model.logits([row, row[:4]])
    decoded = jax.jit(lambda split: split.decode(split.embed(jnp.arange(2))))
    for site in ("residual", "mlp_down"):
        for last, logits in zip(decoded(model.split([row, row[:4]], 1, site=site)), whole, strict=True):
            np.testing.assert_allclose(last, logits[-1], atol=2e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "granite"])
def test_a_change_of_the_down_projection_is_that_of_its_weights(small, name):
    """Weights and biases of one block's down-projection, doubled: as an intervention, and in the parameters."""
    model, row = small(name), references.tokens(9).tolist()
    parameters = dict(model.parameters)
    weights = parameters["blocks.down"][1].T
    bias = parameters.get("blocks.down_bias", jnp.zeros((2, weights.shape[0])))[1]
    steering = ufm.Steering({1: ufm.Weight(weights, bias)}, site="mlp_down")
    steered = jax.jit(lambda split: ufm.steer(split, jnp.arange(1), steering, 1.0))(model.split([row]))
    for part in ("blocks.down", "blocks.down_bias"):
        if part in parameters:
            parameters[part] = parameters[part].at[1].multiply(2)
    doubled = replace(model, decoder=type(model.decoder)(model.config, parameters))
    np.testing.assert_allclose(steered[0], doubled.logits([row])[0][-1], atol=2e-5)


def test_the_read_out_has_the_scale_of_logits(small):
    model = small("granite")
    out, x = readout(model), np.random.default_rng(0).normal(size=32).astype(np.float32)
    normed = out.gamma * x / np.sqrt(np.mean(x**2) + out.eps)
    np.testing.assert_allclose(out.W @ normed, model.decoder.logits(jnp.asarray(x)), rtol=1e-4, atol=1e-5)


def test_the_scale_of_what_is_added_is_not_rounded(small):
    """0.22 is 0.2197 in bfloat16; transformers multiplies by 0.22 and rounds the product."""
    decoder, x = small("granite").with_dtype(jnp.bfloat16).decoder, jnp.arange(1, 33, dtype=jnp.bfloat16)
    expected = (np.arange(1, 33, dtype=np.float32) * np.float32(0.22)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(decoder.post_norm_and_scale(x, decoder.block(0), "after_mlp_norm"), expected)


@pytest.mark.parametrize("name", ["phi3, longrope", "smollm3", "gpt_neox"])
def test_new_families_are_kept_and_loaded_again(small, tmp_path, name):
    model = small(name)
    again = load(model.save(tmp_path / "kept"))
    assert again.config == model.config
    np.testing.assert_array_equal(again.logits([[1, 2, 3]])[0], model.logits([[1, 2, 3]])[0])


EARLIER_NAMES = {
    "nope_layers": "unturned",
    "parallel_residual": "parallel",
    "beta_slow": "low",
    "beta_fast": "high",
    "original_context_length": "original",
    "attention_factor": "size",
    "freq_factors": "divisors",
    "long_freq_factors": "long",
}


@pytest.mark.parametrize("name", ["phi3, longrope", "smollm3", "gpt_neox"])
def test_folders_with_earlier_names_of_settings_are_read(small, tmp_path, name):
    model = small(name)
    folder = model.save(tmp_path / "kept")
    file = folder / "about" / "metadata"
    text = file.read_text()
    for now, before in EARLIER_NAMES.items():
        assert f'"{now}":' in text
        text = text.replace(f'"{now}":', f'"{before}":')
    file.write_text(text)
    assert load(folder).config == model.config


# --- GGUF -------------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"gpt_neox": "GPTNEOX", "gemma3_text": "GEMMA3"}
WRITTEN = {
    "llama, biases, scaled": {"rope": None},  # the factors of its frequencies have a test of their own
    "gemma": {},
    "gemma2": {"query_scale": 1.0},  # the file says nothing of it: it is that of the released models
    "gemma3": {"query_scale": 1.0},
    "olmo2": {},
    "qwen2": {},
    "smollm3": {"nope_layers": ()},  # nor of this
    "phi3": {},
    "granite, biases": {},
    "gpt_neox": {},
    "qwen3": {},
    "gpt2": {},
}
"""What is written as GGUF, and what of it the file does not say."""


def paired(value, heads):
    """Rows of queries or keys as llama.cpp's converter writes them: the two halves of a head in turns."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def write_gguf(folder, path, *, change=None, leave_out=(), apart=False):
    """A folder as llama.cpp's converter writes it: its names, from the package gguf, and its layout."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    kind = gguf.MODEL_ARCH[ARCHITECTURES.get(family, family.upper())]
    about = from_config(config)
    named = gguf.get_tensor_name_map(kind, about.num_layers)
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[kind])
    facts = {
        "block_count": lambda: writer.add_block_count(about.num_layers),
        "context_length": lambda: writer.add_context_length(about.max_seq_len),
        "embedding_length": lambda: writer.add_embedding_length(about.d_model),
        "feed_forward_length": lambda: writer.add_feed_forward_length(about.d_mlp),
        "head_count": lambda: writer.add_head_count(about.num_heads),
        "head_count_kv": lambda: writer.add_head_count_kv(about.num_kv_heads),
        "eps": lambda: (writer.add_layer_norm_eps if about.norm == "layer" else writer.add_layer_norm_rms_eps)(about.eps),
    }
    if about.head_dim * about.num_heads != about.d_model:
        facts["key_length"] = lambda: (writer.add_key_length(about.head_dim), writer.add_value_length(about.head_dim))
    if about.rope is not None:
        facts["freq_base"] = lambda: writer.add_rope_freq_base(about.rope.theta)
        facts["dimension_count"] = lambda: writer.add_rope_dimension_count(2 * about.rope.pairs(about.head_dim))
    if family == "gpt_neox":
        facts["parallel"] = lambda: writer.add_parallel_residual(about.parallel_residual)
    if family == "phi3":
        facts["window"] = lambda: writer.add_sliding_window(config["sliding_window"] or 0)
    if family in ("gemma2", "gemma3_text"):
        facts["window"] = lambda: writer.add_sliding_window(config["sliding_window"])
    if family == "granite":
        facts["scales"] = lambda: (
            writer.add_attention_scale(config["attention_multiplier"]),
            writer.add_embedding_scale(config["embedding_multiplier"]),
            writer.add_residual_scale(config["residual_multiplier"]),
            writer.add_logit_scale(config["logits_scaling"]),
        )
    for name, add in facts.items():
        if name not in leave_out:
            add()
    for name, value in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight" and about.tied:
            continue
        last = name.split(".")[-2]
        if family in ("llama", "smollm3", "granite") and last in ("q_proj", "k_proj"):
            value = paired(value, about.num_heads if last == "q_proj" else about.num_kv_heads)
        if family.startswith("gemma") and "norm" in last:
            value = value + 1
        if last == "query_key_value":
            value = value.reshape(about.num_heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        if family == "gpt2" and last in ("c_attn", "c_proj", "c_fc") and value.ndim == 2:
            value = value.T
        if last == "qkv_proj" and apart:
            sizes = [about.num_heads * about.head_dim, about.num_kv_heads * about.head_dim]
            for part, rows in zip("qkv", np.split(value, np.cumsum([*sizes])), strict=True):
                writer.add_tensor(f"blk.{name.split('.')[2]}.attn_{part}.weight", rows)
            continue
        theirs = named.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, np.ascontiguousarray(value))
    if change is not None:
        change(writer)
    written(writer)
    return Gguf(path)


def same(a, b, **apart):
    """Whether two architectures agree but for some fields, and numbers that a file has in float32."""
    left, right = ({**asdict(config), **apart} for config in (a, b))
    for key in left:
        if isinstance(left[key], float):
            assert left[key] == pytest.approx(right[key], rel=1e-6), key
        else:
            assert left[key] == right[key], key


@pytest.mark.parametrize("name", WRITTEN)
def test_gguf_of_a_family_is_its_folder(checkpoint, tmp_path, name):
    folder = checkpoint(name)
    file, (config, tensors) = write_gguf(folder, tmp_path / "model.gguf"), open_folder(folder)
    same(file.config, config, **WRITTEN[name])
    expected = load_params(config, tensors, progress=False)
    for key, value in load_params(file.config, file, progress=False).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_phi_3_with_queries_keys_and_values_apart(checkpoint, tmp_path):
    folder = checkpoint("phi3")
    file, expected = (
        write_gguf(folder, tmp_path / "model.gguf", apart=True),
        load_params(*open_folder(folder), progress=False),
    )
    for key, value in load_params(file.config, file, progress=False).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def scaling(checkpoint, tmp_path, change, name="llama, grouped, tied", **more):
    return write_gguf(checkpoint(name), tmp_path / "model.gguf", change=change, **more).config.rope


def test_llama_3_1_as_gguf(checkpoint, tmp_path):
    """The converter writes by how much every frequency is divided; llama.cpp divides, and so do we."""
    llama3 = empty("llama", rope_parameters={"rope_type": "llama3", **LLAMA3}).rope
    divisors = np.asarray(Rope(1e4).frequencies(8)) / np.asarray(llama3.frequencies(8))
    assert divisors.max() == 8
    rope = scaling(checkpoint, tmp_path, lambda w: w.add_tensor("rope_freqs.weight", divisors.astype(np.float32)))
    np.testing.assert_allclose(rope.frequencies(8), llama3.frequencies(8), rtol=1e-6)


def test_factors_that_do_not_fit_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        scaling(checkpoint, tmp_path, lambda w: w.add_tensor("rope_freqs.weight", np.full(3, 2, np.float32)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), Rope(1e4, "linear", 4.0)),
        (lambda w: w.add_rope_scaling_factor(4.0), Rope(1e4, "linear", 4.0)),
        (
            lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(4.0)),
            Rope(1e4, "linear", 4.0),
        ),
        (lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.NONE), w.add_rope_scaling_factor(4.0)), Rope(1e4)),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
                w.add_rope_scaling_orig_ctx_len(32),
            ),
            Rope(1e4, "yarn", 4.0, 1.0, 32.0, 32, attention_factor=0.1 * math.log(4) + 1),
        ),
        (lambda w: w.add_rope_scaling_attn_factors(1.25), Rope(1e4, attention_factor=1.25)),
    ],
    ids=["older", "factor", "linear", "none", "yarn", "size"],
)
def test_rotary_keys_of_gguf(checkpoint, tmp_path, change, expected):
    assert scaling(checkpoint, tmp_path, change) == expected


def test_phi_3_with_long_contexts_as_gguf(checkpoint, tmp_path):
    short, long = np.asarray([1.0, 1.25, 1.5, 2.0], np.float32), np.asarray([2.0, 4.0, 8.0, 16.0], np.float32)

    def change(writer):
        writer.add_rope_scaling_orig_ctx_len(40)
        writer.add_rope_scaling_attn_factors(1.125)
        writer.add_tensor("rope_factors_short.weight", short)
        writer.add_tensor("rope_factors_long.weight", long)

    rope = scaling(checkpoint, tmp_path, change, "phi3")
    assert rope == Rope(
        1e4,
        "longrope",
        original_context_length=40,
        attention_factor=1.125,
        freq_factors=tuple(short.tolist()),
        long_freq_factors=tuple(long.tolist()),
    )


def yarn(writer, **values):
    """A scaling of the type yarn with some odd value."""
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    for key, value in values.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"llama.rope.scaling.{key}", value)


def renamed(writer, architecture):
    """An architecture that is no text."""
    writer.kv_data[0]["general.architecture"] = gguf.GGUFValue(architecture, gguf.GGUFValueType.ARRAY)


@pytest.mark.parametrize(
    ("change", "leave_out", "message"),
    [
        (lambda w: w.add_expert_count(8), (), "general.architecture: .*experts"),
        (lambda w: w.add_uint32("llama.rope.dimension_count", 4), ("dimension_count",), "dimension_count"),
        (lambda w: w.add_value_length(4), (), "value_length"),
        (None, ("eps",), "llama.attention.layer_norm_rms_epsilon"),
        (None, ("context_length",), "llama.context_length"),
        (None, ("head_count",), "llama.attention.head_count"),
        (lambda w: w.add_string("llama.rope.scaling.type", "other"), (), "rope.scaling.type"),
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), (), "rope_factors_short.weight"),
        (lambda w: w.add_float32("llama.rope.scaling.yarn_log_multiplier", 0.1), (), "yarn_log_multiplier"),
        (
            lambda w: w.add_float32("llama.rope.scaling.factor", -1.0),
            (),
            "rope.scaling.factor: expected a positive number, got -1",
        ),
        (lambda w: w.add_float32("llama.rope.scale_linear", np.nan), (), "rope.scale_linear: expected a positive number"),
        (lambda w: w.add_array("llama.rope.scaling.factor", [2.0]), (), "rope.scaling.factor: expected a positive number"),
        (lambda w: w.add_float32("llama.rope.scaling.attn_factor", 0.0), (), "rope.scaling.attn_factor: .* got 0"),
        (lambda w: w.add_string("llama.rope.scaling.attn_factor", "x"), (), "rope.scaling.attn_factor: .* got 'x'"),
        (lambda w: yarn(w, yarn_beta_fast=0.0), (), "rope.scaling.yarn_beta_fast: expected a positive number, got 0"),
        (lambda w: yarn(w, yarn_beta_slow=-1.0), (), "rope.scaling.yarn_beta_slow: expected a positive number, got -1"),
        (lambda w: yarn(w, yarn_attn_factor=np.nan), (), "rope.scaling.yarn_attn_factor: expected a positive number"),
        (lambda w: yarn(w, original_context_length=0), (), "rope.scaling.original_context_length: .* got 0"),
        (lambda w: w.add_string("llama.expert_count", "x"), (), "num_experts: expected a whole number"),
        (lambda w: w.add_string("split.no", "x"), (), "split.no: expected a whole number"),
        (lambda w: w.add_string("general.type", "adapter"), (), "^model: .*of the type 'adapter'"),
        (lambda w: renamed(w, ["llama"]), (), r"^general\.architecture: expected one of .*got \['llama'\]"),
        (
            lambda w: w.add_uint64("llama.block_count", 10**13),
            ("block_count",),
            "block_count: expected at most 65536 layers",
        ),
        (lambda w: (yarn(w), w.add_rope_freq_base(1.0)), ("freq_base",), r"^llama\.rope\.freq_base: .*above 1, for yarn"),
    ],
)
def test_gguf_that_is_refused(checkpoint, tmp_path, change, leave_out, message):
    with pytest.raises(ValueError, match=message):
        scaling(checkpoint, tmp_path, change, leave_out=leave_out)


def test_a_window_that_llama_cpp_ignores_is_said(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match="sliding_window"):
        scaling(checkpoint, tmp_path, lambda w: w.add_sliding_window(9))


def olmo3(writer, **more):
    """OLMo 3 has the architecture of OLMo 2, a window, and a scaling of positions."""
    writer.add_sliding_window(3)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    for key, value in more.items():
        writer.add_uint32(f"olmo2.attention.{key}", value)


def test_olmo_3_as_gguf(checkpoint, tmp_path):
    """Windows in all layers but one in four, and the scaling in the layers without one only, as in llama.cpp."""
    path, before = tmp_path / "model.gguf", open_folder(checkpoint("olmo2"))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = write_gguf(checkpoint("olmo2"), path, change=olmo3).config
        every = {
            n: write_gguf(checkpoint("olmo2"), path, change=lambda w, n=n: olmo3(w, sliding_window_pattern=n)).config.windows
            for n in (0, 1, 2)
        }
    assert a.windows == (3, 3, 3, None)[: a.num_layers]
    assert (a.local_rope, a.rope.scaling, a.rope.factor) == (Rope(1e4), "yarn", 4.0)
    n = a.num_layers
    assert every == {0: (3,) * n, 1: (None,) * n, 2: ((3, None) * n)[:n]}
    same(a, before, windows=None, rope=None, local_rope=None)
    model, plain = load(path, progress=False), load(checkpoint("olmo2"), progress=False)
    assert model.config.windows == every[2]
    # Up to the window there is nothing to see of it: the layers that slide have plain positions.
    few, many = references.tokens(3).tolist(), references.tokens(9).tolist()
    sliding = replace(plain.config, windows=(3,) * n, local_rope=None)
    slid = replace(plain, decoder=type(plain.decoder)(sliding, plain.parameters))
    np.testing.assert_allclose(slid.logits([few])[0], plain.logits([few])[0], atol=1e-5)
    write_gguf(checkpoint("olmo2"), path, change=lambda w: olmo3(w, sliding_window_pattern=0))
    all_slide = load(path, progress=False)
    np.testing.assert_allclose(all_slide.logits([many])[0], slid.logits([many])[0], atol=1e-5)
    assert np.abs(all_slide.logits([many])[0][-1] - plain.logits([many])[0][-1]).max() > 1e-3


def test_gemma_2_with_another_pattern_of_windows(checkpoint, tmp_path):
    file = write_gguf(checkpoint("gemma2"), tmp_path / "x.gguf", change=lambda w: w.add_sliding_window_pattern(3))
    window, n = open_folder(checkpoint("gemma2"))[0].windows[0], file.config.num_layers
    assert file.config.windows == tuple(None if (i + 1) % 3 == 0 else window for i in range(n))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", lambda w: w.add_float32("gemma2.rope.freq_base_swa", 5e4), r"gemma2\.rope\.freq_base_swa: .*10000"),
        ("olmo2", lambda w: w.add_float32("olmo2.rope.freq_base_swa", 5e4), r"olmo2\.rope\.freq_base_swa: .*10000"),
        ("gemma2", lambda w: w.add_array("gemma2.attention.sliding_window_pattern", [True]), "one number for all layers"),
        ("gemma3", lambda w: w.add_bool("gemma3.attention.sliding_window_pattern", True), "one number for all layers"),
        ("llama", lambda w: w.add_bool("llama.attention.causal", False), r"llama\.attention\.causal: expected true"),
        (
            "granite, biases",
            lambda w: w.add_uint32("granite.rope.scaling.finetuned", 0),
            "finetuned: expected true or false",
        ),
    ],
)
def test_gguf_settings_that_are_not_implemented(checkpoint, tmp_path, name, change, message):
    with pytest.raises(ValueError, match=message):
        scaling(checkpoint, tmp_path, change, name)


@pytest.mark.parametrize("finetuned", [True, False])
def test_granite_without_positions_as_gguf(checkpoint, tmp_path, finetuned):
    """llama.cpp turns nothing in a Granite whose file says so: one layer then does not see the order of earlier tokens."""
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint("granite, biases"), path, change=lambda w: w.add_rope_scaling_finetuned(finetuned))
    model = load(path, progress=False)
    assert model.config.nope_layers == (() if finetuned else tuple(range(model.config.num_layers)))
    one_layer = replace(model.config, num_layers=1, windows=(None,), nope_layers=model.config.nope_layers[:1])
    first = {name: x[:1] if name.startswith("blocks.") else x for name, x in model.parameters.items()}
    alone = replace(model, decoder=type(model.decoder)(one_layer, first))
    forth, back = (alone.logits([row])[0][-1] for row in ([1, 2, 3, 4, 5], [4, 3, 2, 1, 5]))
    assert (np.abs(forth - back).max() < 1e-5) is not finetuned


def test_gguf_keys_that_are_not_known_are_said(checkpoint, tmp_path):
    def change(writer):
        writer.add_float32("llama.attention.clamp_kqv", 8.0)
        writer.add_uint32("llama.nextn_predict_layers", 1)
        writer.add_uint32("llama.vocab_size", 61)
        writer.add_string("llamas.other", "x")

    expected = r"^llama\.attention\.clamp_kqv, llama\.nextn_predict_layers: not known for this architecture, and not used$"
    with pytest.warns(UserWarning, match=expected):
        assert scaling(checkpoint, tmp_path, change) == Rope(1e4)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(checkpoint, tmp_path):
    """A copy of a small model whose tensors and settings a function has changed."""

    def edit(name, change=None, **settings):
        folder = tmp_path / "edited"
        shutil.copytree(checkpoint(name), folder)
        if change is not None:
            save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder

    return edit


def logits(model):
    return model.logits([[1, 2, 3, 4]])[0]


def test_an_unembedding_that_is_saved_is_used_whatever_the_flag_says(small, edited):
    folder = edited("llama", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=r"tie_word_embeddings.*lm_head\.weight"):
        model = load(folder, progress=False)
    np.testing.assert_array_equal(logits(model), logits(small("llama")))


@pytest.mark.parametrize("only", [False, True])
def test_an_unembedding_that_is_the_embedding(small, edited, only):
    """Saved twice, or as the unembedding only."""

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if only:
            del tensors["model.embed_tokens.weight"]
        return tensors

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(edited("llama, grouped, tied", change), progress=False)
    assert model.config.tied
    np.testing.assert_array_equal(logits(model), logits(small("llama, grouped, tied")))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("llama, grouped, tied", "model."), ("gemma", "model."), ("olmo2, biases, tied", "model."), ("gpt2", "transformer.")],
)
def test_names_without_a_prefix(small, edited, name, prefix):
    model = load(edited(name, lambda t: {key.removeprefix(prefix): value for key, value in t.items()}), progress=False)
    np.testing.assert_array_equal(logits(model), logits(small(name)))


def test_other_names_of_whole_models(small, edited):
    """GPT-NeoX as it was saved before version 5, with its constants."""

    def neox(tensors):
        tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
        constants = {"bias": np.ones((1, 1, 4, 4), bool), "rotary_emb.inv_freq": np.ones(1, np.float32)}
        return tensors | {f"gpt_neox.layers.0.attention.{key}": value for key, value in constants.items()}

    model = load(edited("gpt_neox", neox), progress=False)
    np.testing.assert_array_equal(logits(model), logits(small("gpt_neox")))


def test_gemma_3_without_its_unembedding(small, edited):
    model = load(
        edited("gemma3 among images", lambda t: {k.removeprefix("model."): v for k, v in t.items()}), progress=False
    )
    np.testing.assert_array_equal(logits(model), logits(small("gemma3 among images")))


def test_a_model_saved_without_an_unembedding_of_its_own_is_refused(edited):
    folder = edited("llama", lambda t: {k.removeprefix("model."): v for k, v in t.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"checkpoint: .* got no lm_head.weight"):
        load(folder, progress=False)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (lambda t: {**t, Q.replace("weight", "qweight"): np.ones((2, 2), np.int32)}, "GPTQ or AWQ"),
        (lambda t: {**t, Q.replace("weight", "qzeros"): np.ones((2, 2), np.int32)}, "GPTQ or AWQ"),
        (lambda t: {**t, f"{Q}.absmax": np.ones(2, np.float32)}, "bitsandbytes"),
        (lambda t: {**t, f"{Q}.quant_map": np.ones(16, np.float32)}, "bitsandbytes"),
        (lambda t: {**t, Q.replace("weight", "SCB"): np.ones(2, np.float32)}, "bitsandbytes"),
        (lambda t: {**t, f"{Q}_packed": np.ones((2, 2), np.int32)}, "compressed-tensors"),
        (lambda t: {**t, "model.layers.1.mlp.down_proj_blocks": np.ones((2, 2), np.uint8)}, "MXFP4"),
        (lambda t: {**t, f"{Q}_scale_inv": np.ones(2, np.float32)}, "float8"),
        (lambda t: {**t, Q: t[Q].astype(np.int8)}, "weights of type I8"),
        (lambda t: {**t, Q: t[Q].astype(jnp.float8_e4m3fn)}, "float8"),
    ],
    ids=["GPTQ", "zeros", "bitsandbytes", "map", "SCB", "packed", "blocks", "scales", "int8", "float8"],
)
def test_quantised_folders_are_refused(edited, change, method):
    with pytest.raises(ValueError, match=f"quantised with {method}; .*GGUF"):
        load(edited("llama", change), progress=False)


def test_phi_3_with_another_number_of_rows_is_refused(edited):
    name = "model.layers.0.self_attn.qkv_proj.weight"
    with pytest.raises(ValueError, match=name):
        load(edited("phi3", lambda t: {**t, name: t[name][:-1]}), progress=False)


def test_every_family_runs_with_random_weights():
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 32}
    for family in ("olmo2", "gpt_neox"):
        model = random_model(empty(family, **sizes), jax.random.key(0))
        assert np.isfinite(logits(model)).all()
