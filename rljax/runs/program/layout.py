"""Devices: how many there are, how the members of a run are laid out over them, and the parameters of a model
too large for one.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rljax.checks import counted
from rljax.types import PyTree

Mapping = Literal["vmap", "map"]
# The mesh axis that shares an axis of this name (see `logical_axes` of a model) among its devices.
RULES = {"vocabulary": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "embed": "fsdp"}


def devices_for(members: int) -> list[Any]:
    """The local devices that `members` are sharded over: as many as help, one for a single member."""
    available = jax.local_devices()
    count = min(members, len(available))
    rounds = -(-members // count)  # the longest queue of one device; no more devices than keep it that short
    return available[: -(-members // rounds)]


def mapping_for(device: Any) -> Mapping:
    """How members on one device are mapped: one after the other on a CPU, whose matmuls lose by a batch axis,
    else vmap.
    """
    return "map" if device.platform == "cpu" else "vmap"


def told(swept: dict[str, Any], seeds: list[int], kind: Mapping, devices: list[Any]) -> str:
    """How many members are mapped how, such as "6 configurations × 3 seeds, map on 2 cpu devices"."""
    configurations = len(set(zip(*map(tuple, swept.values()), strict=True))) if swept else 1
    distinct = len(set(seeds))
    members = counted(distinct, "seed")
    if configurations > 1:
        members = f"{counted(configurations, 'configuration')} × {members}"
    if configurations * distinct != len(seeds):  # a part of a sweep that was cut to fit into memory
        members = counted(len(seeds), "member")
    return f"{members}, {kind} on {counted(len(devices), f'{devices[0].platform} device')}"


def shardings(
    mesh: Mesh | AbstractMesh, axes: PyTree, shapes: PyTree, rules: dict[str, str] = RULES
) -> PyTree:
    """Where a model's parameters go: a like tree of NamedShardings, from the names of their axes.

    `axes` is what `logical_axes` of the model says, `shapes` the parameters or their shapes. An axis stays
    whole where `rules` or the mesh do not have it, where its size is no multiple of the mesh axis, and where
    an earlier axis of the same parameter goes over that mesh axis already.

        grid = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
        place = lambda shapes: mesh.shardings(grid, logical_axes(shapes), shapes)
        model, params, *_ = huggingface.load(folder, sharding=place)

    With the rows of a batch over "fsdp", XLA finds the communication of fully sharded data parallelism and
    of Megatron's tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053); no other code knows of it.

    Raises: ValueError where a mesh axis is not Auto, or a parameter has not as many axes as names.
    """
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if kind != AxisType.Auto:
            raise ValueError(
                f"shardings: mesh axis {name!r} is {kind}: make the mesh with axis_types=(AxisType.Auto, ...)"
            )

    def place(leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        if len(names) != len(leaf.shape):
            raise ValueError(f"shardings: the axes {names} for a parameter of shape {leaf.shape}")
        spec: list[str | None] = []
        for name, size in zip(names, leaf.shape, strict=True):
            axis = rules.get(name) if name is not None else None
            shared = axis in mesh.shape and axis not in spec and size % mesh.shape[axis] == 0
            spec.append(axis if shared else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, shapes, axes)


def free_bytes() -> float:
    """Memory that one device has to give, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return float(available.split()[1]) * 1024 / jax.local_device_count()
    except (OSError, StopIteration):
        return float(2**33)
