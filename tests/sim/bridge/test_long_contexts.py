"""Attention of a long context, some queries at a time: the same numbers, in memory that grows with the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge import decoder, split
from sim.bridge.architectures import from_config
from sim.bridge.decoder import in_parts
from sim.bridge.model import load, random_model
from tests.compilation import forget
from ufm import Add, Last, Steering


@pytest.mark.parametrize("most", [1, 3, 5, 7, 20])
def test_parts_of_any_size(most):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 7, 3)), rng.integers(0, 9, (2, 7))
    calls = []

    def function(x, y):
        calls.append(x.shape[1])
        return jnp.cumsum(x, axis=-1) * y[..., None]

    np.testing.assert_allclose(in_parts(function, most, jnp.asarray(x), jnp.asarray(y)), function(x, y), rtol=1e-6)
    assert max(calls[:-1]) <= most


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_numbers_are_those_of_all_queries_at_once(checkpoint, monkeypatch, name):
    lm = load(checkpoint(name), progress=False)
    prompts = [list(range(3, 16)), [5, 9, 2, 6]]
    v = jnp.linspace(-1, 1, lm.config.d_model)
    alphas = jnp.asarray([-2.0, 0.5])

    def everything():
        forget()
        ids, mask = lm.contexts(prompts)
        last = lm.split(prompts).resolve(Steering({0: Add(v)}, tokens=Last()))
        whole = lm.split(prompts, 0, last_only=False).statically()

        def loss(v):
            return jnp.sum(jnp.sin(ufm.steer(whole, [0, 1], v, 0.7)))

        return {
            "logits": split.all_logits(lm.decoder, jnp.asarray(ids), jnp.asarray(mask))[mask],
            "sweep": ufm.sweep(last[0], jnp.arange(2), last[1], alphas, lambda logits, _: jax.nn.log_softmax(logits)),
            "gradient": jax.jit(jax.grad(loss))(v),
            "tokens": np.asarray(lm.generate(prompts, max_new_tokens=4, stop=False).tokens),
        }

    at_once = everything()
    monkeypatch.setattr(decoder, "MOST_QUERIES", 3)
    some_at_a_time = everything()
    for key, value in at_once.items():
        np.testing.assert_allclose(some_at_a_time[key], value, atol=3e-5 * np.abs(value).max(), err_msg=key)
    forget()


def test_memory_grows_with_the_length():
    a = from_config(
        {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 16384,
        }
    )
    lm = random_model(a, jax.random.key(0))

    def held(tokens):
        shapes = (jax.ShapeDtypeStruct((1, tokens), jnp.int32), jax.ShapeDtypeStruct((1, tokens), bool))
        program = jax.jit(split.states_after_blocks).lower(lm.decoder, *shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    small, large = held(4096), held(8192)
    assert large < 2.5 * small
    # All scores of a head and a layer alone would be as much.
    assert large < a.num_heads * 8192**2 * 4
