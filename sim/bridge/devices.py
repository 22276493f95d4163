"""Sizes that suit a device: how much a sweep holds at once there, and whether a model fits; sizes are in numbers or bytes.

A CPU is served best by what its caches hold; an accelerator by as much as its memory takes, so that weights are read for
many strengths at once. A user's own `budget` (`LanguageModel.memory_budget`, or that of a function) goes before all of this.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ufm._check import float_type, require

PLATFORMS = ("cpu", "gpu", "tpu")
"""The kinds of devices that the project is written for; tested are CPUs and NVIDIA cards."""

TYPES = ("float32", "bfloat16", "float16", "float64")
"""The types of weights and of computation; float64 inside ``jax.enable_x64(True)``."""

PRECISIONS = ("full", "fast")
"""The precisions of float32 products: all digits on every device, or what the device does fastest (TF32 on NVIDIA cards)."""


@runtime_checkable
class Device(Protocol):
    """The attributes that are needed of a `jax.Device`."""

    platform: str
    device_kind: str

    def memory_stats(self) -> dict[str, int] | None:
        """Bytes by name, where the device tells."""
        ...


class Portion(NamedTuple):
    """How much is done together.

    Attributes:
        budget: numbers that a sweep holds at once.
        strengths_per_batch: strengths decoded together, at most, where all logits of a text are held.
    """

    budget: int
    strengths_per_batch: int


ON_CPU = Portion(2**26, 4)
"""256 MiB of float32; a few strengths, so that weights are not read for one."""

ON_ACCELERATOR = Portion(2**30, 32)
"""The largest budget. On an 80 GB card it made cross-entropy 2.5 to 4 times faster than `ON_CPU`; more is untried."""

SHARE = 12
"""The part of an accelerator's memory, one in so many, that a sweep's numbers may take: intermediate results need as much
again several times, and the parameters are there too."""


def portion(device: Device) -> Portion:
    """The portion that suits a device's kind and memory; `ON_CPU` for a kind whose memory is not known."""
    memory = capacity(device)
    if device.platform == "cpu" or memory is None:
        return ON_CPU
    numbers = max(1, memory // (4 * SHARE))
    # A power of two, so that devices that differ a little run the same programs.
    return Portion(min(ON_ACCELERATOR.budget, 1 << (numbers.bit_length() - 1)), ON_ACCELERATOR.strengths_per_batch)


def capacity(device: Device) -> int | None:
    """The bytes that JAX may use on a device; None where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit")


def free(device: Device) -> int | None:
    """The bytes that are left of them."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def free_on_host() -> int | None:
    """The bytes of the host's memory that programs may still take; all of it where only that is known, or None."""
    file = Path("/proc/meminfo")  # of Linux
    lines = file.read_text().splitlines() if file.is_file() else []
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if sizes:
        return 1024 * sizes[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def require_room(argument: str, needed: int, device: Device) -> None:
    """Refuse work that cannot fit, before it begins.

    Args:
        argument: the name of the argument that asks for it, for the message.
        needed: bytes, at least.
        device: where it would run.

    Raises:
        ValueError: less is left on the device, or on the host for a CPU; the message says how much is needed, and how much
            there is.
    """
    left = free(device)
    if left is None and device.platform == "cpu":
        left = free_on_host()
    fits = left is None or needed <= left
    wanted = f"a device with at least {in_words(needed)} free"
    require(fits, argument, wanted, f"{in_words(left or 0)} on {device.device_kind}")


PINNED = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
"""The variable that tells XLA how much of the host's memory a process may pin for NVIDIA cards, in GiB; 64 without it."""


def require_pinned(argument: str, needed: int, device: Device) -> None:
    """Refuse what takes more of the host's memory than JAX pins for a device.

    Args:
        argument: that asks for it.
        needed: bytes.
        device: that copies from there.

    Raises:
        ValueError: more than the limit that `PINNED` sets; the message says what to set it to.
    """
    limit = os.environ.get(PINNED, "64")
    fits = device.platform != "gpu" or not limit.isdecimal() or needed <= int(limit) * 2**30
    require(fits, argument, f"{PINNED}={-(-needed // 2**30) + 1} or more in the environment", limit)


def in_words(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def default_device() -> jax.Device:
    """The device that work runs on, unless told otherwise.

    Raises:
        ValueError: ``JAX_PLATFORMS`` names something that JAX does not find, or a kind that is not supported.
    """
    try:
        (device,) = jnp.zeros(()).devices()
    except RuntimeError as error:
        known = "cpu, or an accelerator whose JAX plugin is installed (cuda, tpu)"
        raise ValueError(f"JAX_PLATFORMS: expected {known}, got {str(error).splitlines()[0]}") from error
    require(device.platform in PLATFORMS, "device", f"one of {', '.join(PLATFORMS)}", device.platform)
    return device


def known_type(argument: str, dtype: Any) -> jnp.dtype:
    """A type that models run in, by its name or as one of NumPy, JAX or torch.

    Raises:
        ValueError: none, another one, or float64 where JAX would make float32 of it.
    """
    require(dtype is not None, argument, f"one of {', '.join(TYPES)}", None)  # to NumPy, None is float64
    kind = float_type(argument, dtype, TYPES)
    kept = kind.name != "float64" or jnp.zeros(()).dtype == kind
    require(kept, argument, "float64 inside jax.enable_x64(True) only", "float64 outside")
    return kind


def device_of(arrays: Any) -> jax.Device:
    """The device that arrays are on: the first of this process, where they are spread."""
    leaf = next((leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)), None)
    on = None if leaf is None or isinstance(leaf, jax.core.Tracer) else leaf.devices()
    own = jax.process_index()
    return default_device() if on is None else min(on, key=lambda device: (device.process_index != own, device.id))
