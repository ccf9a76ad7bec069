"""Whether a run fits into memory, said before anything is trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import numpy as np

from rljax import checks
from rljax.runs.program import layout

if TYPE_CHECKING:
    from rljax.runs.program.engine import Program


def told(program: Program, title: str) -> str:
    """What a run needs of memory, in words. Raises: RunError where there is less, before it starts."""
    needed, free = program.memory_bytes() / 2**30, layout.free_bytes() / 2**30
    if needed > free:
        raise checks.RunError(
            f"{title} needs {needed:.1f} GiB on each device, of which {free:.1f} are free: raise num_micro, "
            'lower chunk, batch_size, num_prompts or max_new_tokens, train "lora", or take fewer seeds'
        )
    return f"needs {needed:.2g} of {free:.3g} GiB on each device"


def check(program: Program, members: int, title: str) -> None:
    """Raises: RunError where the states of all members are more than there is memory, before any is made."""
    leaves = jax.tree.leaves(program.template())
    held = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    devices = min(members, jax.local_device_count())
    shared = jax.local_device_count() if jax.local_devices()[0].platform == "cpu" else devices
    if held > layout.free_bytes() * shared:
        kept, free = held / 2**30, layout.free_bytes() * shared / 2**30
        raise checks.RunError(
            f"{title} keeps {kept:.1f} GiB, of which {free:.1f} are free: "
            "lower buffer_size, num_envs or the sizes of the network, or take fewer seeds"
        )
