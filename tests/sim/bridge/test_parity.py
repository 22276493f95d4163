"""Logits against those of transformers, on small random models of every family."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from sim.bridge import fetch, split
from sim.bridge.model import load
from tests.sim.bridge import references
from tests.sim.bridge.references import CONFIGS, KEPT, LENGTHS

TOLERANCE = 1e-4
"""Of logits up to 20, absolute, in float32; of larger ones in proportion, as rounding is."""


def off(model, kept, name):
    """The largest difference of logits in each case: one program, for three sequences padded to the longest, serves all."""
    sequences = [references.tokens(n) for n in LENGTHS]
    errors = {
        str(n): np.abs(logits[-KEPT:] - kept[f"{name}|{n}"]).max()
        for n, logits in zip(LENGTHS, model.logits(sequences), strict=True)
    }
    for side in ("left", "right"):
        ids, masks = references.batch(side)
        rows = [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
        padded, real = model.contexts(rows, side=side, length=max(LENGTHS))
        errors[side] = np.abs(all_logits(model, padded, real)[real] - kept[f"{name}|{side}"]).max()
    return errors


def all_logits(model, ids, mask):
    return np.asarray(split.all_logits(model.decoder, jnp.asarray(ids), jnp.asarray(mask)))


def tolerance(kept, name):
    largest = max(float(np.abs(kept[f"{name}|{n}"]).max()) for n in LENGTHS)
    return TOLERANCE * max(1, largest / 20)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(small, kept, name):
    assert max(off(small(name), kept, name).values()) < tolerance(kept, name)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "phi3, longrope"])
@pytest.mark.parametrize("n", [n for n in LENGTHS if n < max(LENGTHS)])
def test_a_sequence_without_padding_gives_the_same(small, kept, name, n):
    logits = small(name).logits([references.tokens(n)])[0]
    assert len(logits) == n
    assert np.abs(logits[-KEPT:] - kept[f"{name}|{n}"]).max() < tolerance(kept, name)


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", CONFIGS)
def test_references_are_what_transformers_says(kept, name):
    config, shapes, results = references.reference(CONFIGS[name])
    assert {key: list(shape) for key, shape in shapes.items()} == kept["about"][name]["shapes"]
    assert config["model_type"] == kept["about"][name]["config"]["model_type"]
    for case, logits in results.items():
        np.testing.assert_allclose(logits, kept[f"{name}|{case}"], atol=1e-5, rtol=0)


def test_references_are_small():
    assert references.FILE.stat().st_size < 5e6


PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "My favourite season is autumn because",
    "In 1969, two astronauts",
    "To bake bread you need flour,",
    "The three primary colours are",
    "Dear Sir or Madam,",
    "She opened the old wooden box and found",
    "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
    "The theory of evolution explains",
    "Yesterday the parliament decided",
    "A good teacher knows",
    "It was raining when the train",
    "The heart pumps blood",
    "Music makes people",
    "If I had a million dollars",
    "The recipe calls for two eggs,",
    "Deep in the forest lives",
)


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")
def test_smollm2_says_what_transformers_says():
    """Logits of 20 prompts, and the same greedy continuations of 50 tokens, on the same dequantised weights."""
    import torch
    import transformers

    file, model = fetch.default_model(), load(fetch.NAME, progress=False)
    loading = transformers.AutoModelForCausalLM.from_pretrained
    theirs = loading(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    ours = model.generate(PROMPTS, max_new_tokens=50, stop=False).tokens
    for prompt, logits, continued in zip(PROMPTS, model.logits(PROMPTS), ours, strict=True):
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        with torch.no_grad():
            np.testing.assert_allclose(logits, theirs(ids).logits[0].numpy(), atol=1e-3, rtol=0)
            greedy = theirs.generate(ids, max_new_tokens=50, do_sample=False)
        assert tuple(greedy[0, ids.shape[1] :].tolist()) == continued, prompt
