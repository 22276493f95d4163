"""LoRA adapters of PEFT as steerings: an update of the down-projection of MLPs, which is the site "mlp_down".

    steering = read_adapter("an-adapter", lm)     # strength 1 is what PEFT does
    lm.generate(prompts, steering=steering, alpha=0.5)

PEFT adds ``scale B A x`` to a module, with scale alpha/r (or alpha/sqrt(r)): A is `ufm.LoRA.down`, and ``scale B`` its `up`.
An adapter that touches anything else would be half of what it is, and is refused.
"""

import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from sim.bridge.files import read_json, reading, require_new_folder, some_of
from sim.bridge.model import LanguageModel
from sim.bridge.split import MLP_DOWN, sites_of
from sim.bridge.weights import tensor_names
from sim.output import prepare_folder, write_json
from ufm._check import finite, finite_number, require, shown, typed
from ufm.interventions import LoRA
from ufm.steering import All, Steering, require_sites, without_budget

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_MERGE = "put it together with its model by PEFT (merge_and_unload, then save_pretrained into a new folder), and load that"
_MORE = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases",
    "modules_to_save": "modules saved whole",
    "trainable_token_indices": "tokens that are trained",
    "layer_replication": "layers used twice",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "parameters outside modules",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""What a configuration may ask for beyond ``scale B A x``, in words."""

_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the weights of the model alone."""

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")


class _Pair(NamedTuple):
    """The two matrices of a block, and the name of their module."""

    module: str
    a: np.ndarray
    b: np.ndarray


@typed
def read_adapter(folder: str | Path, lm: LanguageModel) -> Steering:
    """The LoRA adapter that PEFT has saved in a folder, as a steering at the site "mlp_down": strength 1 is what PEFT does.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        lm: the model that it is for.

    Raises:
        ValueError: no such folder; a kind of adapter other than LoRA; modules other than the down-projection of MLPs; layers
            or widths that the model does not have; numbers that are not finite. The message says what is supported.
    """
    path = Path(folder)
    what = f"a folder with {CONFIG} and {WEIGHTS}"
    require((path / CONFIG).is_file(), "adapter", what, f"{str(path)!r} without {CONFIG}")
    config = read_json(path / CONFIG)
    _refuse_more_than_lora(config, path)
    pickled = f", but the pickle {file.name}" if (file := path / "adapter_model.bin").is_file() else ""
    advice = ": load it with PEFT and save it anew (save_pretrained)" if pickled else ""
    require((path / WEIGHTS).is_file(), "adapter", what, f"{str(path)!r} without {WEIGHTS}{pickled}{advice}")
    with reading(path / WEIGHTS, "a whole safetensors file", argument="adapter"):
        tensors = load_file(path / WEIGHTS)
    pairs = _pairs(tensors, lm, path)
    inputs, outputs = sites_of(lm.config)[MLP_DOWN]
    updates = {}
    for block, pair in sorted(pairs.items()):
        fits = pair.a.shape[1:] == (inputs,) and pair.b.shape[:1] == (outputs,) and pair.b.shape[1:] == pair.a.shape[:1]
        got = f"A {pair.a.shape} and B {pair.b.shape} of {pair.module}"
        require(fits, "adapter", f"A [r, {inputs}] and B [{outputs}, r], as the model has them", got)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            up = finite("adapter", pair.b * np.float32(_scale(config, pair))).astype(np.float32)
        updates[block] = LoRA(jnp.asarray(pair.a), jnp.asarray(up))
    return Steering(updates, site=MLP_DOWN)


@typed
def write_adapter(steering: Steering, folder: str | Path, lm: LanguageModel) -> Path:
    """Write LoRA at the site "mlp_down" as an adapter that PEFT loads; `read_adapter` gives it back bit for bit.

    Args:
        steering: of `ufm.LoRA` with a layer each, at all tokens; strength 1 is written.
        folder: must not exist, or be empty.
        lm: the model that it is for.

    Returns:
        The folder, which appears whole or not at all.

    Raises:
        ValueError: another steering, or one for another model; a folder that holds something.
    """
    path = Path(os.path.realpath(folder))
    require_new_folder(path)
    require_sites(without_budget(steering, "a file of weights"), sites_of(lm.config), layers=lm.config.num_layers)
    template, tensors, ranks = _template(lm), {}, {}
    for part in steering.parts:
        fits = isinstance(part.intervention, LoRA) and part.site == MLP_DOWN and isinstance(part.tokens, All)
        require(fits and part.layer is not None, "steering", 'LoRA with a layer each at the site "mlp_down"', repr(steering))
        module = template.format(int(part.layer))
        require(module not in ranks, "steering", "one LoRA for each layer", f"several at layer {part.layer}")
        update: Any = part.intervention
        ranks[module] = int(update.down.shape[0])
        for letter, matrix in (("A", update.down), ("B", update.up)):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = np.ascontiguousarray(matrix, np.float32)
    prepare_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        made = Path(temporary) / path.name
        made.mkdir()
        save_file(tensors, made / WEIGHTS, {"format": "pt"})
        write_json(made / CONFIG, _config(lm, ranks))
        made.replace(path)
    return path


def _config(lm: LanguageModel, ranks: Mapping[str, int]) -> dict[str, Any]:
    """A configuration of PEFT in which the scale is 1 at every module."""
    rank = max(ranks.values())
    others = {module: size for module, size in ranks.items() if size != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        # The matrices of GPT-2 are stored as [in, out].
        "fan_in_fan_out": lm.config.family == "gpt2",
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _template(lm: LanguageModel) -> str:
    """The name of the down-projection in transformers, with ``{}`` for the block: "model.layers.{}.mlp.down_proj"."""
    entries = tensor_names.table(lm.config, "safetensors", ())
    return entries["blocks.down"].template.removesuffix(".weight")


def _refuse_more_than_lora(config: Mapping[str, Any], path: Path) -> None:
    """Refuse an adapter that does more than ``scale B A x``."""
    kind = config.get("peft_type")
    require(kind == "LORA", "adapter", 'one of peft_type "LORA"', f"{shown(kind)} in {str(path)!r}: {_MERGE}")
    more = [words for key, words in _MORE.items() if config.get(key)]
    require(not more, "adapter", "plain LoRA", f"one with {', '.join(more)} in {str(path)!r}: {_MERGE}")
    start = config.get("init_lora_weights")
    says = f"init_lora_weights {start!r}, which changes the weights of the model too, in {str(path)!r}: {_MERGE}"
    require(start in _STARTS, "adapter", "plain LoRA", says)


def _pairs(tensors: Mapping[str, np.ndarray], lm: LanguageModel, path: Path) -> dict[int, _Pair]:
    """The matrices of every block, in float32.

    Raises:
        ValueError: other modules, half a pair, several modules for a block, numbers that are not finite.
    """
    before, after = _template(lm).split("{}")
    supported = re.compile(rf"(?:.*\.)?{re.escape(before.split('.')[-2])}\.(\d+){re.escape(after)}")
    matrices: dict[str, dict[str, np.ndarray]] = {}
    others = set()
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        module, letter = match.groups() if match else (name, "")
        if match and supported.fullmatch(module):
            matrices.setdefault(module, {})[letter] = finite(f"lora_{letter} of {module}", tensor).astype(np.float32)
        else:
            others.add(re.sub(r".*\.\d+\.", "", module))
    expected = f'LoRA of the modules {after[1:]} (the site "{MLP_DOWN}") and of no others'
    require(not others, "adapter", expected, f"also {some_of(sorted(others))} in {str(path)!r}: {_MERGE}")
    require(len(matrices) > 0, "adapter", expected, f"none in {str(path)!r}")
    pairs: dict[int, _Pair] = {}
    for module, pair in matrices.items():
        require(len(pair) == 2, "adapter", "both A and B of every module", f"only {', '.join(pair)} of {module}")
        block = int(supported.sub(r"\1", module))
        require(block not in pairs, "adapter", "one module for each block", f"several for block {block}")
        pairs[block] = _Pair(module, pair["A"], pair["B"])
    last = lm.config.num_layers - 1
    require(max(pairs) <= last, "adapter", f"blocks 0 to {last}, the model's", f"block {max(pairs)} in {str(path)!r}")
    return pairs


def _scale(config: Mapping[str, Any], pair: _Pair) -> float:
    """What PEFT multiplies ``B A x`` with."""
    rank = _of_pattern(config, "rank_pattern", pair.module, "r")
    alpha = _of_pattern(config, "alpha_pattern", pair.module, "lora_alpha")
    require(rank == pair.a.shape[0], "adapter", f"rank {rank:g} at {pair.module}, as {CONFIG} says", pair.a.shape[0])
    by_root = config.get("use_rslora")
    require(by_root is None or isinstance(by_root, bool), "adapter", f"use_rslora in {CONFIG} true or false", shown(by_root))
    return alpha / (math.sqrt(rank) if by_root else rank)


def _of_pattern(config: Mapping[str, Any], patterns: str, module: str, otherwise: str) -> float:
    """A number that the configuration has for a module: that of the first pattern that fits, or the one for all."""
    listed = config.get(patterns) or {}
    require(isinstance(listed, dict), "adapter", f"numbers by module as {patterns} in {CONFIG}", shown(listed))
    key = next((key for key in listed if _fits(key, module, patterns)), None)
    number = config.get(otherwise) if key is None else listed[key]
    return finite_number(f"{otherwise} in {CONFIG}", number, "a positive number", lambda x: x > 0)


def _fits(key: str, module: str, patterns: str) -> bool:
    """Whether a pattern of the configuration is one for a module."""
    try:
        return re.match(rf"(.*\.)?({key})$", module) is not None
    except re.error as error:
        raise ValueError(
            f"adapter: expected regular expressions in {patterns} of {CONFIG}, got {key!r} ({error})"
        ) from error
