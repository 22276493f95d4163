"""Models that the project trains, kept as Orbax checkpoints: parameters, architecture and tokenizer in one folder.

A folder appears whole or not at all. `sim.load` reads it like any other.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from jax.typing import DTypeLike

from sim.bridge import devices
from sim.bridge.config import Config
from sim.bridge.files import reading, require_new_folder
from sim.bridge.parameters import ShardingOf, is_gain, parameter_bytes, placed, require_finite, shapes
from sim.bridge.rope import Rope
from sim.bridge.tokenizer import Tokenizer
from ufm._check import require

_PARTS = ("parameters", "about")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like one of these."""
    return all((folder / part).is_dir() for part in _PARTS)


def save(folder: str | Path, config: Config, parameters: Mapping[str, Any], tokenizer: Tokenizer | None) -> Path:
    """Write a model as an Orbax checkpoint.

    Args:
        folder: must not exist, or be empty.
        config: of the decoder.
        parameters: by path, as `sim.bridge.parameters.shapes` lists them.
        tokenizer: its tokenizer, if it has one.

    Raises:
        ValueError: a folder that holds something, or a file; parameters that are not those of the architecture.
    """
    import orbax.checkpoint as ocp

    path = Path(os.path.realpath(folder))
    require_new_folder(path)
    actual, wanted = {name: tuple(value.shape) for name, value in parameters.items()}, shapes(config)
    require(actual == wanted, "parameters", "those of the architecture", _difference(actual, wanted))
    about = {"config": asdict(config), "tokenizer": None if tokenizer is None else _as_json(tokenizer)}
    if path.exists():
        path.rmdir()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = {"parameters": ocp.args.StandardSave(dict(parameters)), "about": ocp.args.JsonSave(about)}
        checkpointer.save(path, args=ocp.args.Composite(**args))
    return path


def read(
    folder: Path,
    *,
    dtype: DTypeLike,
    sharding_of: ShardingOf | None = None,
    digest: "hashlib._Hash | None" = None,
) -> tuple[Config, dict[str, jax.Array], Tokenizer | None]:
    """A model again; arguments are those of `sim.bridge.weights.hf.load_params`.

    Raises:
        ValueError: a folder that is damaged, parameters that are not finite; the message names it.
    """
    import orbax.checkpoint as ocp

    path, expected = folder.absolute(), "a whole Orbax checkpoint of this project"
    handler = ocp.CompositeCheckpointHandler
    with ocp.Checkpointer(handler()) as checkpointer, reading(path, expected):
        about = checkpointer.restore(path, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        older = "architecture" in about
        require(not older, "checkpoint", "one of this version", "one of an older version: train or save the model anew")
        config = _config(about["config"])
        tokenizer = None if about["tokenizer"] is None else _of_json(about["tokenizer"])
    device = devices.default_device()
    if sharding_of is None:
        devices.require_room("model", parameter_bytes(config, dtype), device)
    alone = jax.sharding.SingleDeviceSharding(device)
    abstract = {
        name: jax.ShapeDtypeStruct(
            shape,
            np.float32 if is_gain(name) else np.dtype(dtype),
            sharding=alone if sharding_of is None else sharding_of(config, name, shape),
        )
        for name, shape in shapes(config).items()
    }
    with ocp.Checkpointer(handler()) as checkpointer, reading(path, expected):
        wanted = ocp.args.Composite(parameters=ocp.args.StandardRestore(abstract))
        restored = checkpointer.restore(path, args=wanted)["parameters"]
    for name, value in restored.items():
        require_finite(name, np.asarray(value))
    return config, placed(config, restored.items(), sharding_of, digest), tokenizer


_RENAMED = {
    "unturned": "nope_layers",
    "parallel": "parallel_residual",
    "low": "beta_slow",
    "high": "beta_fast",
    "original": "original_context_length",
    "size": "attention_factor",
    "divisors": "freq_factors",
    "long": "long_freq_factors",
}
"""Fields of `Config` and `Rope` by the names that folders which are written already have for them."""


def _config(kept: dict[str, Any]) -> Config:
    def listed(values: dict[str, Any]) -> dict[str, Any]:
        return {
            _RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }

    ropes = {name: None if kept[name] is None else Rope(**listed(kept[name])) for name in ("rope", "local_rope")}
    return Config(**{**listed(kept), **ropes})


def _as_json(tokenizer: Tokenizer) -> dict[str, Any]:
    # Under "ends", as in folders that are written already.
    rest = {"bos": tokenizer.bos, "eos": tokenizer.eos, "ends": list(tokenizer.eos_ids), "adds_bos": tokenizer.adds_bos}
    rest |= {"adds_eos": True} if tokenizer.adds_eos else {}
    # The package keeps everything of its tokenizer but this.
    rest |= {"splits_special_tokens": True} if tokenizer.core.encode_special_tokens else {}
    template = tokenizer.template if isinstance(tokenizer.template, str | None) else dict(tokenizer.template)
    return {"core": json.loads(tokenizer.core.to_str()), "template": template, "named": dict(tokenizer.named), **rest}


def _of_json(kept: dict[str, Any]) -> Tokenizer:
    core = tokenizers.Tokenizer.from_str(json.dumps(kept["core"]))
    core.encode_special_tokens = kept.get("splits_special_tokens", False)
    # Folders that were written before special tokens had names, or before texts could end with one, are read too.
    named, eos_ids, adds_eos = kept.get("named", {}), tuple(kept["ends"]), kept.get("adds_eos", False)
    return Tokenizer(core, kept["bos"], kept["eos"], eos_ids, kept["adds_bos"], kept["template"], named, adds_eos)


def _difference(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    off = sorted(name for name in {*actual, *wanted} if actual.get(name) != wanted.get(name))
    return ", ".join(f"{name} {actual.get(name)} for {wanted.get(name)}" for name in off[:3])
