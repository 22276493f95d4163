"""The parameters of a decoder: their paths, shapes and logical axes, random ones, and those of a file on a device."""

import hashlib
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from sim.bridge.config import Config
from ufm._check import require

ShardingOf = Callable[[Config, str, tuple[int, ...]], jax.sharding.Sharding]
"""Where a parameter is to be, from its path and shape."""


def shapes(a: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its path in `Decoder`; matrices are ``[in, out]``.

    Names of the axes: `axes`.
    """
    sizes = _sizes(a)
    return {name: tuple(sizes[axis] for axis in names) for name, names in axes(a).items()}


def axes(a: Config) -> dict[str, tuple[str, ...]]:
    """The logical axes of every parameter, by its path: what sharding rules speak of."""
    outer: dict[str, tuple[str, ...]] = {"embedding": ("vocab", "d_model")}
    if a.learned_positions:
        outer["positions"] = ("position", "d_model")
    if not a.tied:
        outer["unembedding"] = ("vocab", "d_model")
    blocks: dict[str, tuple[str, ...]] = {
        "query": ("d_model", "heads"),
        "key": ("d_model", "kv_heads"),
        "value": ("d_model", "kv_heads"),
        "out": ("heads", "d_model"),
    }
    blocks |= {"gate": ("d_model", "d_mlp")} if a.gated else {}
    blocks |= {"up": ("d_model", "d_mlp"), "down": ("d_mlp", "d_model")}
    biased = [*(["query", "key", "value"] if a.qkv_bias else []), *(["out"] if a.out_bias else [])]
    biased += [name for name in ("gate", "up", "down") if a.mlp_bias and name in blocks]
    blocks |= {f"{name}_bias": blocks[name][1:] for name in biased}
    norms = ["attention_norm", "mlp_norm"] if a.pre_norm else []
    norms += ["after_attention_norm", "after_mlp_norm"] if a.post_norm else []
    blocks |= dict.fromkeys(norms, ("d_model",))
    if a.qk_norm:
        whole = a.whole_qk_norm
        blocks |= {"query_norm": ("heads" if whole else "head_dim",), "key_norm": ("kv_heads" if whole else "head_dim",)}
    last: dict[str, tuple[str, ...]] = {"norm": ("d_model",)}
    if a.norm == "layer":
        blocks |= {f"{name}_bias": ("d_model",) for name in norms}
        last["norm_bias"] = ("d_model",)
    return outer | {f"blocks.{name}": ("layer", *axis) for name, axis in blocks.items()} | last


def _sizes(a: Config) -> dict[str, int]:
    return {
        "vocab": a.vocab_size,
        "d_model": a.d_model,
        "position": a.max_seq_len,
        "layer": a.num_layers,
        "heads": a.num_heads * a.head_dim,
        "kv_heads": a.num_kv_heads * a.head_dim,
        "head_dim": a.head_dim,
        "d_mlp": a.d_mlp,
    }


def is_gain(name: str) -> bool:
    """Whether a parameter belongs to a norm; these are kept in float32, whatever the type of the others."""
    return "norm" in name


def parameter_bytes(a: Config, dtype: DTypeLike) -> int:
    """The bytes that the parameters of a model take on a device."""
    return sum(bytes_of(name, shape, dtype) for name, shape in shapes(a).items())


def bytes_of(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """The bytes that a parameter takes: those of norms are in float32."""
    return math.prod(shape) * (4 if is_gain(name) else jnp.dtype(dtype).itemsize)


def is_block_matrix(a: Config, name: str) -> bool:
    """Whether a parameter is a matrix of every block: nearly all that a large model has."""
    return len(axes(a)[name]) == 3


def init_parameters(key: jax.Array, a: Config, *, dtype: DTypeLike = jnp.float32) -> dict[str, Array]:
    """Random parameters that keep the size of the stream: normal entries of deviation ``1 / sqrt(in)``, gains of 1.

    What blocks add is smaller by the square root of their number, as in GPT-2.
    """
    parameters = {}
    for k, (name, shape) in zip(jax.random.split(key, len(shapes(a))), shapes(a).items(), strict=True):
        if is_gain(name):
            parameters[name] = (jnp.zeros if name.endswith("_bias") else jnp.ones)(shape, jnp.float32)
        elif name.endswith("_bias"):
            parameters[name] = jnp.zeros(shape, dtype)
        else:
            fan_in = a.d_model if name in ("embedding", "unembedding", "positions") else shape[-2]
            size = fan_in**-0.5 / (math.sqrt(2 * a.num_layers) if name in ("blocks.out", "blocks.down") else 1)
            parameters[name] = (size * jax.random.normal(k, shape)).astype(dtype)
    return parameters


def require_finite(argument: str, weights: np.ndarray) -> None:
    """Refuse weights that are not all numbers.

    Raises:
        ValueError: NaN or infinity.
    """
    wide = weights.astype(np.float32) if weights.dtype.itemsize < 4 else weights
    require(bool(np.isfinite(wide).all()), argument, "finite weights", "NaN or infinity")


def placed(
    a: Config,
    parameters: Iterable[tuple[str, np.ndarray | jax.Array]],
    sharding_of: ShardingOf | None = None,
    digest: "hashlib._Hash | None" = None,
) -> dict[str, Array]:
    """The parameters of a decoder by path, where they are used: brought there one after the other, unless they are there.

    Args:
        a: the architecture.
        parameters: paths and values, in any order.
        sharding_of: where each is to be; the default device if left out.
        digest: updated with the name, the shape and a sample of every parameter, if given.
    """
    arrays, samples = {}, {}
    for name, whole in parameters:
        if digest is not None:
            samples[name] = _sample(name, np.asarray(whole))
        # Waited for, so that no more than one is in two places at a time.
        if sharding_of is None or isinstance(whole, jax.Array):
            array = jax.device_put(whole)
        else:
            array = jax.make_array_from_callback(whole.shape, sharding_of(a, name, whole.shape), whole.__getitem__)
        arrays[name] = jax.block_until_ready(array)
        # Let go of before the next one is read.
        del whole
    if digest is not None:
        digest.update(b"".join(samples[name] for name in shapes(a)))
    return {name: arrays[name] for name in shapes(a)}


def _sample(name: str, whole: np.ndarray) -> bytes:
    """A name, a shape, a type and a few numbers: what tells parameters apart."""
    few = whole.reshape(-1)[:: max(1, whole.size // 64)].astype(np.float32)
    return f"{name}{whole.shape}{whole.dtype}".encode() + few.tobytes()
