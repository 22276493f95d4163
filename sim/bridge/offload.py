"""Models larger than a device: matrices of blocks in the memory of the host, from where each block comes when it runs."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array

from sim.bridge import devices
from sim.bridge.config import Config
from sim.bridge.parameters import ShardingOf, bytes_of, is_block_matrix, shapes
from sim.bridge.sharding import bytes_on_each
from ufm._check import require

HOST = "pinned_host"
"""JAX's name for memory of the host that a device copies from without the processor."""


def is_on_host(parameter: object) -> bool:
    """Whether a parameter is in the memory of the host and not of a device."""
    return getattr(getattr(parameter, "sharding", None), "memory_kind", None) == HOST


def bytes_on_host(a: Config, dtype: Any, copies: int = 1) -> int:
    """The bytes that the matrices of blocks take in the memory of the host: every group of devices has a copy of its own."""
    sizes = (bytes_of(name, shape, dtype) for name, shape in shapes(a).items() if is_block_matrix(a, name))
    return copies * sum(sizes)


def offloaded(sharding_of: ShardingOf | None, dtype: Any, *, needed: bool = False) -> ShardingOf:
    """Shardings that keep the matrices of blocks in the host's memory; each block is copied to the device when it runs.

    Args:
        sharding_of: which device has which part; the default device has all if left out.
        dtype: of the parameters.
        needed: whether they are there only where the default device has no room for them.

    Raises:
        ValueError: a device that JAX knows no such memory for, one without room, a host that may not give so much; a release
            of JAX that brings a wrong block.
    """
    device = devices.default_device()

    @cache
    def stay(a: Config) -> bool:
        """Whether they are on the host; room for all is made sure of."""
        left = devices.free(device)
        if needed and (left is None or bytes_on_each(a, dtype) <= left):
            return False
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        require(HOST in kinds, "offload", f"a device with {HOST} memory", f"{device.device_kind} with {', '.join(kinds)}")
        if sharding_of is None:
            devices.require_room("model", bytes_on_each(a, dtype, offload=True), device)
        _require_right_blocks(device)
        return True

    def place(a: Config, name: str, shape: tuple[int, ...]) -> Sharding:
        on_devices = SingleDeviceSharding(device) if sharding_of is None else sharding_of(a, name, shape)
        if not stay(a) or not is_block_matrix(a, name):
            return on_devices
        mesh = getattr(on_devices, "mesh", None)
        copies = 1 if mesh is None else mesh.local_mesh.shape.get("data", 1)
        devices.require_pinned("offload", bytes_on_host(a, dtype, copies), device)
        return on_devices.with_memory_kind(HOST)

    return place


def _require_right_blocks(device: jax.Device) -> None:
    """Refuse a release whose compiler brings another part of an array on the host than it is asked for.

    Some releases for accelerators did in loops that do not begin at 0.
    """
    values = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    array = jax.device_put(values, SingleDeviceSharding(device, memory_kind=HOST))

    @jax.jit
    def read(array: Array) -> Array:
        return lax.fori_loop(2, 5, lambda i, total: 10 * total + to_device(array, i).sum(), jnp.zeros(()))

    total = float(read(array))
    wanted = float(np.polyval(values[2:5].sum(axis=(1, 2)), 10))
    require(total == wanted, "offload", "a release of JAX that brings the right block from the host", jax.__version__)


@partial(jax.jit, inline=True)
def to_device(stacked: Array, i: Any) -> Array:
    """One of the arrays along the first axis of an array on the host, on the device."""
    return jax.device_put(lax.dynamic_index_in_dim(stacked, i, keepdims=False), jax.memory.Space.Device)
