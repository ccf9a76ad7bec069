"""Devices: how many there are, how the members of a run are laid out over them, and the parameters of a model
too large for one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # JAX may not be imported before `use_every_core`
    from jax.sharding import AbstractMesh, Mesh

    from rljax.types import PyTree

Mapping = Literal["vmap", "map"]
# The mesh axis that shares an axis of this name (see `logical_axes` of a model) among its devices.
RULES = {"vocabulary": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "embed": "fsdp"}


def use_every_core() -> None:
    """Let JAX's CPU backend show one device per core, so that members of a run can be sharded over cores.

    Only before JAX has started, and only if nothing was asked for already: RLJAX_HOST_DEVICES=1 opts out,
    another number sets that many, and XLA_FLAGS' or JAX's own setting wins. A single seed runs on one device
    and keeps every core for its matmuls.
    """
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or "JAX_NUM_CPU_DEVICES" in os.environ
    ):
        return
    wanted = os.environ.get("RLJAX_HOST_DEVICES", "")
    if wanted and (not wanted.isdigit() or int(wanted) < 1):
        raise SystemExit(
            f"rljax: error: RLJAX_HOST_DEVICES={wanted!r}: must be a number of devices, 1 for no sharding"
        )
    count = (
        int(wanted)
        if wanted
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    if count == 1:
        return
    if "jax" not in sys.modules:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(count)
        return
    import jax

    with contextlib.suppress(RuntimeError):  # JAX has started: what it shows now stays
        jax.config.update("jax_num_cpu_devices", count)


def devices_for(members: int) -> list[Any]:
    """The local devices that `members` are sharded over: as many as help, one for a single member."""
    import jax

    available = jax.local_devices()
    count = min(members, len(available))
    rounds = -(-members // count)  # the longest queue of one device; no more devices than keep it that short
    return available[: -(-members // rounds)]


def compiler_options(device: Any) -> dict[str, Any]:
    """What a program is compiled with for this device.

    On a CPU with registers of 512 bits LLVM prefers half of them unless told otherwise: using them whole gave
    5 to 16 % more steps per second of DQN, TD3 and SAC. It changes nothing where there are none.
    """
    return {"xla_cpu_prefer_vector_width": 512} if device.platform == "cpu" else {}


def mapping_for(device: Any) -> Mapping:
    """How members on one device are mapped: one after the other on a CPU, whose matmuls lose by a batch axis,
    else vmap.
    """
    return "map" if device.platform == "cpu" else "vmap"


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
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return float(available.split()[1]) * 1024 / jax.local_device_count()
    except (OSError, StopIteration):
        return float(2**33)
