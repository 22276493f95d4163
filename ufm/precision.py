"""Precision is a stated choice: which floats a computation runs in, and that its matrix products keep them.

float32 means float32 on every device. Accelerators multiply float32 matrices in a shorter type unless told otherwise
(TF32 on NVIDIA cards, relative error 3e-4; bfloat16 on TPUs), so every product here asks for the precision of its type.
What is made of logits (softmax, KL, norms, log-probabilities) is computed in float32 at least, whatever the model runs in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def in_float64() -> Iterator[None]:
    """float64 on the CPU device, even where there is an accelerator: what theory, toy models and verification run in.

    Their programs are many and small: compiling them for an accelerator takes longer than running them here. As the settings
    of JAX that it makes, it holds for one thread. Arrays that were placed on a device on purpose (`jax.device_put`) stay
    there. Where JAX was started without its CPU device (``JAX_PLATFORMS=cuda``), the default device does the work.
    """
    cpu = _cpu()
    with jax.enable_x64(True), nullcontext() if cpu is None else jax.default_device(cpu):
        yield


def _cpu() -> jax.Device | None:
    """The first CPU device of this process, if JAX has one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def full(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with its matrix products at the precision of their type, on every device and whatever JAX's default is."""

    # The setting of JAX is part of what a compiled program is known by; entered here, it ends with the call.
    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return inside


def of_products(dtype: DTypeLike, *, fast: bool = False) -> lax.Precision:
    """What to ask of a product of matrices of a type: all of its digits, or what is fastest on the device.

    Half types have nothing to lose, and are left at what is fastest.
    """
    half = jnp.dtype(dtype).itemsize < 4
    return lax.Precision.DEFAULT if fast or half else lax.Precision.HIGHEST


def wide(x: Any) -> Float[Array, "..."]:
    """An array in float32 at least; integers and flags in the default float, which is float64 where that is on."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(float)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
