"""Models and contexts over many devices: logical axes of parameters, and a table of rules that says where each axis goes.

A mesh has an axis "data", over which contexts and strengths are spread, and an axis "model", over which parameters are. The
names of the parameters' axes are those of `sim.bridge.parameters.axes`; XLA puts in the communication. The same code runs on
one device, on several, and in several processes that `jax.distributed` has joined.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sim.bridge.config import Config
from sim.bridge.parameters import Placement, axes
from ufm._check import require

RULES: dict[str, str] = {"vocab": "model", "heads": "model", "kv_heads": "model", "d_mlp": "model"}
"""Which axis of the mesh an axis of parameters is spread over; axes that are not listed are whole everywhere."""


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
    require(data >= 1 and (model is None or model >= 1), "mesh", "at least one device along each axis", (data, model))
    across = max(1, len(available) // data) if model is None else model
    require(data * across <= len(available), "mesh", f"at most the {len(available)} devices there are", data * across)
    grid = np.asarray(available[: data * across]).reshape(data, across)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def spec(names: Sequence[str], shape: Sequence[int], mesh: Mesh, rules: Mapping[str, str] = RULES) -> PartitionSpec:
    """How an array is spread: axes by the rules, as far as they divide evenly; no axis of the mesh is used twice.

    Raises:
        ValueError: a rule that names an axis that the mesh has not.
    """
    unknown = sorted(set(rules.values()) - set(mesh.axis_names))
    require(not unknown, "rules", f"axes of the mesh, {', '.join(mesh.axis_names)}", unknown)
    chosen: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        to = rules.get(name)
        fits = to is not None and to not in chosen and size % mesh.shape[to] == 0
        chosen.append(to if fits else None)
    return PartitionSpec(*chosen)


def on_mesh(mesh: Mesh, rules: Mapping[str, str] = RULES) -> Placement:
    """What brings every parameter to its devices.

    A device gets its own part only; in several processes each reads the checkpoint and keeps what is its own.
    """

    def place(a: Config, name: str, value: np.ndarray) -> Array:
        sharding = NamedSharding(mesh, spec(axes(a)[name], value.shape, mesh, rules))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return place


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
