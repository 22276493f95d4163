"""Published sparse autoencoders: folders as SAELens writes them, with `cfg.json` and `sae_weights.safetensors`.

SAELens counts hook points, and the project counts blocks: `blocks.L.hook_resid_post` is the state after block L, and
`blocks.L.hook_resid_pre` the one after block L - 1. What a folder holds that would change the features in a way that is not
known here is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.bridge.files import read_json
from sim.bridge.model import LanguageModel
from sim.bridge.weights.hf import Safetensors
from sim.directions.sparse_autoencoder import NORMALIZATIONS, SparseAutoencoder
from ufm._check import require, shown, typed, whole_number

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_ACTIVATIONS = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}


@typed
def read_sparse_autoencoder(folder: str | Path, lm: LanguageModel | None = None) -> SparseAutoencoder:
    """A sparse autoencoder from a folder of SAELens, of any version.

    Read are the architectures "standard", "jumprelu" and "topk", of the residual stream before or after a block. With "topk"
    and `rescale_acts_by_decoder_norm`, lengths of atoms are moved into the encoder, which changes no state.

    Args:
        folder: has `cfg.json` and `sae_weights.safetensors`.
        lm: the model that it is to be used with, if it is to be checked: its width, and that it has the block.

    Raises:
        ValueError: files that are missing or damaged, another architecture, hook point or normalisation, tensors that are
            missing, unknown, of other shapes or not finite, another width than the model's, a block it does not have.
    """
    path = Path(folder)
    require(path.is_dir(), "folder", f"a folder with {CONFIG} and {WEIGHTS}", f"{str(path)!r}, which is none")
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    require(
        not missing, "folder", f"a folder with {CONFIG} and {WEIGHTS}", f"no {' and no '.join(missing)} in {str(path)!r}"
    )
    config = _config(read_json(path / CONFIG))
    layer = _layer(config["hook_name"], config.get("hook_head_index"))
    tensors = _tensors(path / WEIGHTS, config)
    sae = SparseAutoencoder(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        threshold=tensors.get("threshold"),
        activation=_ACTIVATIONS[config["architecture"]],
        k=config["k"],
        subtracts_bias=config["apply_b_dec_to_input"],
        normalization=config["normalize_activations"],
        layer=layer,
        source=path.name,
    )
    return sae if lm is None else require_fits(sae, lm)


def require_fits(sae: SparseAutoencoder, lm: LanguageModel) -> SparseAutoencoder:
    """The autoencoder itself, if it can be used with a model.

    Args:
        sae: the autoencoder.
        lm: the model.

    Raises:
        ValueError: another width, a block that the model does not have.
    """
    d, last = lm.config.d_model, lm.config.num_layers - 1
    require(sae.width == d, "sae", f"one for the model's width {d}", f"width {sae.width}")
    require(sae.layer is None or sae.layer <= last, "sae", f"one for a block from 0 to {last}", f"block {sae.layer}")
    return sae


def _config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration under the names of today, with defaults; what it was trained on is under "metadata" there."""
    metadata = raw.get("metadata") or {}
    require(isinstance(metadata, dict), "metadata", f"an object in {CONFIG}", shown(metadata))
    config = {_OLD_NAMES.get(name, name): value for name, value in {**metadata, **raw}.items()}
    activation = config.get("activation_fn") or "relu"
    kwargs = config.get("activation_fn_kwargs") or {}
    old_topk = activation == "topk" and isinstance(kwargs, dict) and "k" in kwargs
    architecture = "topk" if old_topk else config.get("architecture", "standard")
    known = isinstance(architecture, str) and architecture in _ACTIVATIONS
    require(known, "architecture", f"one of {', '.join(_ACTIVATIONS)}", shown(architecture))
    require(old_topk or activation in ("relu", "topk"), "activation_fn", "relu", shown(activation))
    normalization = config.get("normalize_activations") or "none"
    folded = normalization is not True and normalization != "expected_average_only_in"
    fold = "weights with the mean norm of states folded into them (fold_activation_norm_scaling_factor in SAELens)"
    require(folded, "normalize_activations", fold, "a factor that the folder does not hold")
    known = isinstance(normalization, str) and normalization in NORMALIZATIONS
    require(known, "normalize_activations", f"one of {', '.join(NORMALIZATIONS)}", shown(normalization))
    if (config.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        # TransformerLens then takes the mean over coordinates out of every state; `layer_norm` does so anyway.
        fits = normalization != "constant_norm_rescale"
        require(fits, "normalize_activations", "none or layer_norm with center_writing_weights", normalization)
        normalization = "center" if normalization == "none" else normalization
    reshaped = config.get("reshape_activations") or "none"
    require(reshaped == "none", "reshape_activations", "none", shown(reshaped))
    k = whole_number("k", kwargs["k"] if old_topk else config.get("k"), 1) if architecture == "topk" else 0
    return config | {
        "architecture": architecture,
        "normalize_activations": normalization,
        "k": k,
        "hook_name": config.get("hook_name"),
        "apply_b_dec_to_input": _truth(config, "apply_b_dec_to_input", default=True),
        "rescale_acts_by_decoder_norm": _truth(config, "rescale_acts_by_decoder_norm", default=False),
    }


def _truth(config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    require(isinstance(value, bool), name, f"true or false in {CONFIG}", shown(value))
    return bool(value)


def _layer(hook: Any, head: Any) -> int:
    """The block whose states a hook point has."""
    match = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    expected = "blocks.L.hook_resid_post or blocks.L.hook_resid_pre, the residual stream between blocks"
    require(match is not None, "hook_name", expected, shown(hook))
    assert match is not None
    require(head is None, "hook_head_index", "none: whole states", shown(head))
    layer = int(match[1]) - (match[2] == "pre")
    require(layer >= 0, "hook_name", "a hook after a block", f"{hook}, before the first")
    return layer


def _tensors(path: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a folder as float32, of the right shapes and finite."""
    file = Safetensors.of_file(path)
    shapes = file.shapes()
    require("W_enc" in shapes and len(shapes["W_enc"]) == 2, path.name, "W_enc [d_in, d_sae]", shown(shapes.get("W_enc")))
    d, f = shapes["W_enc"]
    for name, size in (("d_in", d), ("d_sae", f)):
        require(config.get(name, size) == size, name, f"{size}, as in {path.name}", shown(config.get(name)))
    expected = {"W_enc": (d, f), "W_dec": (f, d), "b_enc": (f,), "b_dec": (d,)}
    optional = {"scaling_factor": (f,)}
    jumps = config["architecture"] == "jumprelu"
    if jumps:
        expected["log_threshold" if "log_threshold" in shapes else "threshold"] = (f,)
    absent = sorted(expected.keys() - shapes.keys())
    require(not absent, path.name, f"the tensors {', '.join(expected)}", f"no {', '.join(absent)}")
    unknown = sorted(shapes.keys() - expected.keys() - optional.keys())
    require(not unknown, path.name, f"the tensors {', '.join(expected)} only", f"{', '.join(unknown)} besides")
    tensors = {}
    for name in shapes:
        shape = (expected | optional)[name]
        require(shapes[name] == shape, name, f"shape {shape}", f"{shapes[name]}")
        tensors[name] = np.asarray(file.read(name), np.float32)
        require(bool(np.isfinite(tensors[name]).all()), name, "finite numbers", f"others in {path.name}")
    scaled = bool((tensors.pop("scaling_factor", np.ones(f)) != 1).any())
    require(not scaled, "scaling_factor", "ones", "a finetuned scale of activations")
    if "log_threshold" in tensors:
        tensors["threshold"] = np.exp(tensors.pop("log_threshold"))
    require(config["k"] <= f, "k", f"at most the {f} features", config["k"])
    return _rescaled(tensors) if config["rescale_acts_by_decoder_norm"] else tensors


def _rescaled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Atoms of length 1, with their lengths in the encoder: the k largest are then chosen by what they add to a state."""
    lengths = np.linalg.norm(tensors["W_dec"], axis=1)
    require(bool((lengths > 0).all()), "W_dec", "atoms that are not 0", "one that is")
    encoder = {"W_enc": tensors["W_enc"] * lengths, "b_enc": tensors["b_enc"] * lengths}
    return tensors | encoder | {"W_dec": tensors["W_dec"] / lengths[:, None]}
