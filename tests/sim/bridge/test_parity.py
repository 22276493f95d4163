"""Logits against those of transformers, on small random models of every family."""

import importlib.util

import numpy as np
import pytest

from . import references
from .references import CONFIGS, KEPT, LENGTHS

TOLERANCE = 1e-4
"""Of logits, absolute, in float32."""


def off(model, kept, name):
    """The largest difference of logits in each case."""
    found = {}
    for n in LENGTHS:
        logits = model.logits([references.tokens(n)])[0][-KEPT:]
        found[str(n)] = np.abs(logits - kept[f"{name}|{n}"]).max()
    for side in ("left", "right"):
        ids, seen = references.batch(side)
        rows = [row[mask].tolist() for row, mask in zip(ids, seen, strict=True)]
        got = np.asarray(all_logits(model, *model.contexts(rows, side=side)))[seen]
        found[side] = np.abs(got - kept[f"{name}|{side}"]).max()
    return found


def all_logits(model, ids, seen):
    import jax.numpy as jnp

    from sim.bridge import split

    return split.all_logits(model.decoder, jnp.asarray(ids), jnp.asarray(seen))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(small, kept, name):
    assert max(off(small(name), kept, name).values()) < TOLERANCE


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", CONFIGS)
def test_references_are_what_transformers_says(kept, name):
    config, shapes, found = references.reference(CONFIGS[name])
    assert {key: list(shape) for key, shape in shapes.items()} == kept["about"][name]["shapes"]
    assert config["model_type"] == kept["about"][name]["config"]["model_type"]
    for case, logits in found.items():
        np.testing.assert_allclose(logits, kept[f"{name}|{case}"], atol=1e-5, rtol=0)


def test_references_are_small():
    assert references.FILE.stat().st_size < 5e6
