"""Models and contexts over many devices: logical axes of parameters, and a table of rules that says where each axis goes.

A mesh has an axis "data", over which contexts are spread, and an axis "model", over which parameters are. The names of the
parameters' axes are those of `sim.bridge.parameters.axes`; XLA puts in the communication. The same code runs on one device,
on several, and in several processes that `jax.distributed` has joined. Devices that share one copy of the parameters are a
group: work that falls into independent pieces is done by groups side by side (`groups`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sim.bridge import devices
from sim.bridge.config import Config
from sim.bridge.parameters import ShardingOf, axes, bytes_of, is_block_matrix, shapes
from ufm._check import require, whole_number

RULES: dict[str, str] = {"vocab": "model", "heads": "model", "kv_heads": "model", "d_mlp": "model"}
"""Which axis of the mesh an axis of parameters is spread over; axes that are not listed are whole everywhere."""


AXES = ("data", "model")
"""The axes of a mesh."""

ONE_DEVICE = dict.fromkeys(AXES, 1)
"""The sizes of the axes where nothing is spread."""

BLOCKS_AT_ONCE = 4
"""Blocks whose matrices are on a device at the same time, at most, where they come from the host: that which runs, the one
that comes meanwhile, the last one, which is outside their loop, and the one that a model is split inside."""

PARAMETER_SHARE = 2
"""The part of a device's memory, one in so many, that parameters may take where a mesh is chosen for a model."""


def make_mesh(data: int = 1, model: int | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of ``data * model`` devices.

    Args:
        data: how many groups of devices, each with its own contexts.
        model: how many devices share the parameters; all that are left, if left out.
        devices: all, of all processes, if left out.

    Raises:
        ValueError: fewer devices than that.
    """
    available = list(jax.devices() if devices is None else devices)
    for name, size in (("data", data), ("model", model)):
        if size is not None:
            whole_number(name, size, 1)
    across = max(1, len(available) // data) if model is None else model
    one_cpu = len(available) == 1 and available[0].platform == "cpu"
    hint = " (JAX_NUM_CPU_DEVICES=8 makes 8 of a CPU)" if one_cpu else ""
    require(data * across <= len(available), "mesh", f"at most {len(available)} devices{hint}", data * across)
    return _mesh(np.asarray(available[: data * across]).reshape(data, across))


def _mesh(grid: np.ndarray) -> Mesh:
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


BytesOnEach = Callable[[int], int]
"""A function from the number of devices that share the parameters to the bytes that each holds."""


def mesh_from_text(text: str, on_each: BytesOnEach, hosts: int = 1, *, whole: bool = False) -> Mesh:
    """A mesh as the command line names it.

    Args:
        text: ``data=2,model=4``; one of the two alone, and the other takes the devices that are left; or ``auto``:
            parameters over as few devices as have room for them, and as many groups as there are.
        on_each: what the parameters take.
        hosts: how many share the groups of the mesh evenly. The mesh that is made is the part of one of them.
        whole: whether ``auto`` makes one group of all devices, since every group has something in the memory of the host.

    Raises:
        ValueError: another text, fewer devices than that, groups that do not come out even on the hosts, or devices
            without room for the parameters.
    """
    if text.strip() == "auto":
        return _fitting_mesh(on_each, whole)
    expected = "auto, or as in data=2,model=4"
    sizes: dict[str, int] = {}
    for assignment in text.split(","):
        name, _, value = (part.strip() for part in assignment.partition("="))
        good = name in AXES and name not in sizes and value.isascii() and value.isdigit() and int(value) > 0
        require(good, "mesh", expected, repr(text))
        sizes[name] = int(value)
    data = sizes.get("data", max(1, jax.local_device_count() // sizes.get("model", 1)) * hosts)
    require(data % hosts == 0, "mesh", f"groups that come out even on {hosts} hosts", f"data={data}")
    return make_mesh(data // hosts, sizes.get("model"))


def _fitting_mesh(on_each: BytesOnEach, whole: bool) -> Mesh:
    """The smallest groups of devices that have room for parameters, or the largest."""
    count, memory = jax.local_device_count(), devices.capacity(jax.local_devices()[0])
    sizes = [size for size in range(count if whole else 1, count + 1) if count % size == 0]
    fits = [size for size in sizes if memory is None or on_each(size) <= memory / PARAMETER_SHARE]
    needed, room = (devices.in_words(size) for size in (on_each(count), (memory or 0) // PARAMETER_SHARE))
    expected = f"devices with room for parameters of {needed} each, spread over all"
    require(bool(fits), "mesh", expected, f"{count} with {room} for them")
    return make_mesh(count // fits[0], fits[0], devices=jax.local_devices())


def spec(names: Sequence[str], shape: Sequence[int], mesh: Mesh, rules: Mapping[str, str] = RULES) -> PartitionSpec:
    """How an array is spread: axes by the rules, as far as they divide evenly; no axis of the mesh is used twice.

    Raises:
        ValueError: a rule that names an axis that the mesh has not.
    """
    _require_known(rules, mesh)
    return PartitionSpec(*_axes_of_mesh(names, shape, mesh.shape, rules))


def _require_known(rules: Mapping[str, str], mesh: Mesh) -> None:
    unknown = sorted(set(rules.values()) - set(mesh.axis_names))
    require(not unknown, "rules", f"axes of the mesh, {', '.join(mesh.axis_names)}", unknown)


def _axes_of_mesh(
    names: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int], rules: Mapping[str, str]
) -> list[str | None]:
    """The axis of the mesh that each axis of an array is spread over; None where it is whole."""
    chosen: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        to = rules.get(name)
        fits = to is not None and to not in chosen and size % sizes[to] == 0
        chosen.append(to if fits else None)
    return chosen


def bytes_on_each(
    a: Config,
    dtype: Any,
    sizes: Mapping[str, int] = ONE_DEVICE,
    *,
    offload: bool = False,
    rules: Mapping[str, str] = RULES,
) -> int:
    """The bytes that the parameters take on each device.

    Args:
        a: the architecture.
        dtype: of the parameters.
        sizes: of the axes of a mesh; a parameter of which no axis divides evenly is whole on each device.
        offload: whether matrices of blocks are on the host. Those of `BLOCKS_AT_ONCE` blocks are on the device then.
        rules: see `RULES`.
    """
    total = 0
    for name, shape in shapes(a).items():
        over = _axes_of_mesh(axes(a)[name], shape, sizes, rules)
        size = bytes_of(name, shape, dtype) // math.prod(sizes[to] for to in over if to is not None)
        part = min(BLOCKS_AT_ONCE, a.num_layers) if offload and is_block_matrix(a, name) else a.num_layers
        total += size * part // a.num_layers
    return total


def on_mesh(
    mesh: Mesh | str, dtype: Any, hosts: int = 1, rules: Mapping[str, str] = RULES, *, offload: bool = False
) -> ShardingOf:
    """How every parameter is spread over a mesh: a device gets its own part only.

    Args:
        mesh: the mesh, or its name as `mesh_from_text` takes it.
        dtype: of the parameters.
        hosts: that share the mesh of that name.
        rules: see `RULES`.
        offload: whether matrices of blocks are to be on the host (`offloaded`), so that a device needs room for few of them.

    Raises:
        ValueError: as `mesh_from_text`; a mesh along which no parameter of the model divides; devices without room for it.
    """

    @cache
    def chosen(a: Config) -> Mesh:
        def on_each(model: int) -> int:
            return bytes_on_each(a, dtype, ONE_DEVICE | {"model": model}, offload=offload, rules=rules)

        grid = mesh_from_text(mesh, on_each, hosts, whole=offload) if isinstance(mesh, str) else mesh
        _require_known(rules, grid)
        across = grid.shape.get("model", 1)
        shared = across == 1 or on_each(across) < on_each(1) or not isinstance(mesh, str)
        expected = "model= a number that divides the heads, the width of the MLP or the vocabulary"
        require(shared, "mesh", expected, f"model={across}, with which every parameter is whole on each device")
        for device in grid.local_devices:
            size = bytes_on_each(a, dtype, grid.shape, offload=offload, rules=rules)
            devices.require_room("model", size, device)
        return grid

    def sharding_of(a: Config, name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(chosen(a), spec(axes(a)[name], shape, chosen(a), rules))

    return sharding_of


def mesh_of(parameter: Any) -> Mesh | None:
    """The mesh that a parameter is spread over; None for one on a single device, or of NumPy."""
    mesh = getattr(getattr(parameter, "sharding", None), "mesh", None)
    return mesh if isinstance(mesh, Mesh) else None


def groups(mesh: Mesh) -> list[Mesh]:
    """The groups of devices of this process: each is a mesh, and has all parameters.

    Raises:
        ValueError: a group with devices of several processes.
    """
    own = jax.process_index()
    rows = [row for row in mesh.devices if any(device.process_index == own for device in row)]
    together = all(device.process_index == own for row in rows for device in row)
    expected = f"groups of devices of one host, model={jax.local_device_count()} at most"
    require(together, "mesh", expected, f"model={mesh.shape['model']}")
    return [_mesh(row[None]) for row in rows]


def part_of(array: Array, group: Mesh) -> Array:
    """A parameter on one of the groups of its mesh. Nothing is copied."""
    assert isinstance(array.sharding, NamedSharding)
    shards = {shard.device: shard.data for shard in array.addressable_shards}
    sharding = NamedSharding(group, array.sharding.spec, memory_kind=array.sharding.memory_kind)
    return jax.make_array_from_single_device_arrays(array.shape, sharding, [shards[device] for device in group.devices.flat])


def over_groups(mesh: Mesh) -> NamedSharding | None:
    """How the first axis of an array, contexts or strengths, goes over the groups of a mesh; None if there is one group."""
    return NamedSharding(mesh, PartitionSpec("data")) if mesh.shape.get("data", 1) > 1 else None


def spread(mesh: Mesh, *arrays: Any) -> tuple[Array, ...]:
    """Arrays with their first axis, contexts or strengths, over "data": the same arrays in every process.

    Raises:
        ValueError: a first axis that does not divide evenly.
    """
    groups, sharding = mesh.shape["data"], NamedSharding(mesh, PartitionSpec("data"))

    def over(array: np.ndarray) -> Array:
        require(array.shape[0] % groups == 0, "contexts", f"a multiple of the {groups} groups of devices", array.shape[0])
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return tuple(over(np.asarray(array)) for array in arrays)
