"""Whether an environment, a network and an algorithm fit each other, told in one line before anything is
compiled: `jax.eval_shape` runs the functions of all three on shapes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rljax import checks
from rljax.models.continuous import ActorCritic
from rljax.models.heads import Head
from rljax.types import Box, Discrete, Env, MultiDiscrete, Network, PyTree, Space

_Leaf = jax.ShapeDtypeStruct
BATCH = (7, 5)  # leading axes of the observations that a network is tried with


class Output(NamedTuple):
    """One array that a network gives for an observation."""

    name: str
    shape: tuple[int, ...]  # without the leading axes of the observation


def policy_and_value(head: Head) -> tuple:
    """The outputs of the network of REINFORCE, A2C, PPO and TRPO."""
    if not head.continuous:
        return Output("logits", (head.size,)), Output("value", ())
    return (Output("mean", (head.size,)), Output("log_std", (head.size,))), Output("value", ())


def check(
    env: Env,
    config: Any,
    network: Any = None,
    outputs: PyTree = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    axes: int = 1,
) -> None:
    """ValueError in one line where `env` is not what an Env promises, or a network of the user's own (None:
    there is none) does not give what the algorithm needs.

    Nothing is checked where numbers of `config` are traced: `make` has been called with concrete ones before.

    Args:
        config: of the algorithm, which the message names.
        outputs: a pytree of `Output`.
        inputs: shapes of float32 arrays that the network takes beside an observation, by name.
        axes: how many leading axes the observations have in this algorithm, 1 or 2.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(config)):
        return
    observation = check_env(env)
    if network is None:
        return
    algorithm, beside = checks.algorithm_of(config), inputs or {}
    if not isinstance(network, Network):
        kind = "an ActorCritic of two" if isinstance(network, ActorCritic) else f"a {type(network).__name__}"
        raise ValueError(
            f"{algorithm}: the network is {kind}: must be one Network, as rljax.models.from_linen makes it"
        )
    _check_outputs(env, algorithm, "network", network, observation, beside, outputs, BATCH[:axes])


def check_pair(
    env: Env, config: Any, network: Any, actor: PyTree, critic: PyTree, action: tuple[int, ...] | None
) -> None:
    """`check` for an algorithm whose networks are an actor and a critic, with the outputs of each; `action`
    is the shape of the raw action that the critic takes too, None: it takes none.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(config)):
        return
    observation = check_env(env)
    if network is None:
        return
    algorithm = checks.algorithm_of(config)
    if not isinstance(network, ActorCritic) or not all(isinstance(each, Network) for each in network):
        raise ValueError(
            f"{algorithm}: the network is a {type(network).__name__}: must be a rljax.models.ActorCritic of "
            "two Networks, an actor and a critic"
        )
    beside = {} if action is None else {"action": action}
    given = env, algorithm
    _check_outputs(*given, "actor", network.actor, observation, {}, actor, BATCH[:1])
    _check_outputs(*given, "critic", network.critic, observation, beside, critic, BATCH[:1])


def _check_outputs(
    env: Env,
    algorithm: str,
    what: str,
    network: Network,
    observation: PyTree,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: PyTree,
    batch: tuple[int, ...],
) -> None:
    """ValueError where the network does not give `outputs` for observations (*batch, ...)."""
    key = jax.eval_shape(jax.random.key, 0)
    arrays = [_Leaf(shape, jnp.float32) for shape in inputs.values()]
    rows = lambda tree: jax.tree.map(lambda x: _Leaf((*batch, *x.shape), x.dtype), tree)
    called = ", ".join(["params", "observation", *inputs])
    try:
        params = jax.eval_shape(network.init, key, observation, *arrays)
        found = jax.eval_shape(network.apply, params, rows(observation), *rows(arrays))
    except Exception as error:
        raise ValueError(
            f"{algorithm}: the {what} fails on observations of {env.name}, as init or as apply({called}): "
            f"{_first_line(error)}"
        ) from error
    is_output = lambda x: isinstance(x, Output)
    wanted = jax.tree.map(lambda each: (*batch, *each.shape), outputs, is_leaf=is_output)
    shapes = jax.tree.map(lambda x: x.shape, found)
    if shapes != wanted:
        raise ValueError(
            f"{algorithm}: the {what} gives {_shown(shapes, batch)} for an observation of {env.name}: "
            f"must be {_shown(outputs, batch)}"
        )


def _shown(tree: PyTree, batch: tuple[int, ...]) -> str:
    """Shapes as in a docstring: (..., A) where the leading axes are those of the observation."""
    if isinstance(tree, Output):
        return f"{tree.name} {_shown((*batch, *tree.shape), batch)}"
    if isinstance(tree, tuple) and all(isinstance(size, int) for size in tree):
        if tree[: len(batch)] != batch:
            return f"{tree} without the leading axes {batch}"
        return f"({', '.join(['...', *map(str, tree[len(batch) :])])})"
    if isinstance(tree, Mapping):
        return f"{{{', '.join(f'{name}: {_shown(each, batch)}' for name, each in tree.items())}}}"
    if isinstance(tree, list | tuple):
        parts = ", ".join(_shown(each, batch) for each in tree)
        return f"[{parts}]" if isinstance(tree, list) else f"({parts})"
    return f"a {type(tree).__name__}"


def check_env(env: Env) -> PyTree:
    """The shapes and dtypes of an observation of `env`.

    Raises: ValueError where `reset` and `step` do not return what an Env promises, or an observation is not
    of the shape that the observation space says.
    """
    key = jax.eval_shape(jax.random.key, 0)
    first = _called(env, "reset", env.reset, key)
    if not isinstance(first, tuple) or len(first) != 2:
        raise ValueError(f"{env.name}: reset must return (observation, state), not {_count(first)}")
    observation, state = first
    if wrong := _misfit(env.observation_space, observation, "the observation"):
        raise ValueError(f"{env.name}: {wrong}")
    action = _elements(env.action_space)
    if action is None:
        return observation  # of a kind that no algorithm takes: they say so
    after = _called(env, "step", env.step, key, state, action)
    parts = "(observation, state, reward, terminated, truncated)"
    if not isinstance(after, tuple) or len(after) != 5:
        raise ValueError(f"{env.name}: step must return {parts}, not {_count(after)}")
    for name, before, now in zip(("observation", "state"), first, after[:2], strict=True):
        _check_same(env.name, name, before, now)
    for name, value in zip(("reward", "terminated", "truncated"), after[2:], strict=True):
        right = "a number" if name == "reward" else "a bool"
        fits = isinstance(value, _Leaf) and value.shape == ()
        kinds = (jnp.floating, jnp.integer, jnp.bool_) if name == "reward" else (jnp.bool_,)
        if not fits or not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
            told = f"{value.dtype} {value.shape}" if isinstance(value, _Leaf) else type(value).__name__
            raise ValueError(f"{env.name}: step gives {told} as {name}: must be {right} of shape ()")
    return observation


def _called(env: Env, name: str, function: Callable, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        if isinstance(error, ValueError) and "\n" not in str(error) and str(error).startswith(env.name):
            raise
        raise ValueError(f"{env.name}: {name} fails: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def _count(value: Any) -> str:
    if isinstance(value, _Leaf):
        return "one array"
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _elements(space: Space) -> PyTree | None:
    """Shapes and dtypes of an element of `space`; None where a part of it is no space."""
    if isinstance(space, Box | Discrete | MultiDiscrete):
        return _Leaf(tuple(space.shape), jnp.dtype(space.dtype))
    if isinstance(space, Mapping):
        parts = {name: _elements(each) for name, each in space.items()}
        return None if None in parts.values() else parts
    if isinstance(space, tuple):
        parts = tuple(map(_elements, space))
        return None if any(each is None for each in parts) else parts
    return None


def _misfit(space: Space, observed: Any, where: str) -> str | None:
    """What of an observation is not as its space says, in words."""
    if isinstance(space, Box | Discrete | MultiDiscrete):
        if not isinstance(observed, _Leaf):
            return f"{where} is a {type(observed).__name__}, its space says one array"
        if observed.shape != tuple(space.shape):
            return f"{where} has shape {observed.shape}, its space says {tuple(space.shape)}"
        return None
    if isinstance(space, Mapping):
        there, here = set(space), _keys(observed)
        if here is None or there != here:
            only = ", ".join(map(repr, sorted(there ^ (here or set()), key=str)))
            return f"{where} and its space do not have the same keys: {only} is in one of them alone"
        of = lambda name: observed[name] if isinstance(observed, Mapping) else getattr(observed, name)
        found = (_misfit(each, of(name), f"{where}[{name!r}]") for name, each in space.items())
    elif isinstance(space, tuple):
        if not isinstance(observed, tuple) or len(observed) != len(space):
            return f"{where} is {_count(observed)}, its space says {len(space)}"
        pairs = enumerate(zip(space, observed, strict=True))
        found = (_misfit(each, part, f"{where}[{i}]") for i, (each, part) in pairs)
    else:
        return None
    return next((wrong for wrong in found if wrong), None)


def _keys(observed: Any) -> set | None:
    if isinstance(observed, Mapping):
        return set(observed)
    if dataclasses.is_dataclass(observed):
        return {field.name for field in dataclasses.fields(observed)}
    return set(observed._fields) if hasattr(observed, "_fields") else None


def _check_same(name: str, what: str, before: PyTree, after: PyTree) -> None:
    """ValueError where the leaves of a tree have other shapes or dtypes after a step than after `reset`."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(f"{name}: the {what} has another structure after step than after reset")
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            where = f"the {what}{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{name}: {where} is {old.dtype} {old.shape} after reset and {new.dtype} {new.shape} after "
                "step: give both the same"
            )
