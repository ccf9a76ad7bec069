"""What an environment of the user's own gives, looked at in shape alone before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax.types import Env, PyTree


def check(env: Env) -> None:
    """Trace `reset` and one `step` of an environment, in shape alone.

    Raises: ValueError in one line where they fail, where the observation is not of its space or the state
    changes shape or type in a step, or where reward, terminated or truncated are not single numbers and
    flags.
    """
    key = jax.eval_shape(jax.random.key, 0)
    obs, state = _parts(env, "reset", ("observation", "state"), env.reset, key)
    _like_its_space(env, obs)
    action = jax.tree.map(lambda space: jax.ShapeDtypeStruct(space.shape, space.dtype), env.action_space)
    names = ("observation", "state", "reward", "terminated", "truncated")
    stepped: dict[str, Any] = dict(
        zip(names, _parts(env, "step", names, env.step, key, state, action), strict=True)
    )
    for name, before in (("observation", obs), ("state", state)):
        _unchanged(env, name, before, stepped[name])
    reward = stepped["reward"]
    if not _is_scalar(reward) or jnp.issubdtype(reward.dtype, jnp.complexfloating):
        raise ValueError(f"{env.name}: step gives the reward {_told(reward)}: must be float32 of shape ()")
    for name in ("terminated", "truncated"):
        flag = stepped[name]
        if not _is_scalar(flag) or flag.dtype != jnp.bool_:
            raise ValueError(f"{env.name}: step gives {name} as {_told(flag)}: must be bool of shape ()")


def _parts(env: Env, name: str, parts: tuple[str, ...], function: Callable, *arguments: Any) -> tuple:
    """What a function of the environment returns, in shapes."""
    try:
        found = jax.eval_shape(function, *arguments)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{env.name}: {name} fails: {type(error).__name__}: {reason}") from error
    if not isinstance(found, tuple) or len(found) != len(parts):
        number = len(found) if isinstance(found, tuple) else 1
        raise ValueError(f"{env.name}: {name} returns {number} values: must be ({', '.join(parts)})")
    return found


def _like_its_space(env: Env, obs: PyTree) -> None:
    declared = [space.shape for space in jax.tree.leaves(env.observation_space)]
    given = [leaf.shape for leaf in jax.tree.leaves(obs)]
    if declared != given:
        shapes = f"{_listed(given)}, its space {_listed(declared)}"
        raise ValueError(f"{env.name}: an observation has the shapes {shapes}: must be the same")


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " ".join(map(str, shapes)) or "of nothing"


def _unchanged(env: Env, name: str, before: PyTree, after: PyTree) -> None:
    """A scan carries observation and state, which takes the same structure, shapes and types every time."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(f"{env.name}: reset and step return different structures of the {name}")
    for (path, one), two in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            where = name + jax.tree_util.keystr(path)
            raise ValueError(f"{env.name}: {where} is {_told(one)} after reset and {_told(two)} after a step")


def _is_scalar(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and leaf.shape == ()


def _told(leaf: Any) -> str:
    """The type and shape of an array, or what else it is."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return f"{leaf.dtype} of shape {leaf.shape}"
    return f"a {type(leaf).__name__}"
