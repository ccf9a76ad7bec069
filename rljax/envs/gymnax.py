"""Gymnax environments as `Env`: every id, every constructor argument, every parameter, with exact boundaries.

Gymnax ≥ 1.0 (https://github.com/RobertTLange/gymnax). We call `reset_env`, `step_env` and `is_truncated`, but
never `step`, whose auto-reset would run a reset at every step. What an environment declares does not always
agree with what it returns (shapes, dtypes, weak types): what `reset` and `step` really return counts here.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax import backend
from rljax.checks import RunError, is_real, show, suggest
from rljax.envs import probes, tabular
from rljax.envs.wrappers import part
from rljax.types import Array, Box, Discrete, Env, Key, PyTree, Space

_Leaf = jax.ShapeDtypeStruct
LIMIT = "max_steps_in_episode"  # the parameter that every environment of Gymnax has
_ENDLESS = 10**9  # a time limit of this many steps or more is none
_OURS = {**probes.PROBES, **tabular.PROBLEMS}


def library() -> Any:
    """The package gymnax, without what only its drawings need: seaborn, and with it pandas and SciPy's
    statistics, took more than half of its import.
    """
    with backend.importing, backend.later("seaborn", "matplotlib.pyplot"):
        import gymnax
    return gymnax


def names() -> tuple[str, ...]:
    """Every id that `make` knows: Gymnax's own, a user's that are registered there, probes and MDPs."""
    return (*library().registered_envs, *_OURS)


def make(name: str, **arguments: Any) -> Env:
    """The environment of this id: `make("CartPole-v1", gravity=5.0)`, `make("Catch-bsuite", rows=8)`.

    Each keyword argument goes to the environment's constructor if that takes it, else to its parameters.
    Parameters may be traced: built inside a `vmap` over them, the environment is swept. Constructor arguments
    may not. ValueError for an unknown id or argument; RunError where a constructor cannot load its data.
    """
    if name in _OURS:
        _check(name, arguments, list(inspect.signature(_OURS[name]).parameters))
        return _made(name, arguments, lambda: _OURS[name](**arguments))
    gymnax = library()
    if name not in gymnax.registered_envs:
        hint = suggest(name, names()) or "; rljax.envs.names() lists them"
        raise ValueError(f"no environment {name!r}{hint}")
    signature = inspect.signature(gymnax.registration._registry[name]).parameters
    accepts_any = any(each.kind is each.VAR_KEYWORD for each in signature.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = [key for key, each in signature.items() if each.kind in named]
    constructor = {key: value for key, value in arguments.items() if key in accepted}
    environment, params = _construct(name, constructor)
    fields = [field.name for field in dataclasses.fields(params)]
    changes = {key: arguments[key] for key in fields if key in arguments and key not in constructor}
    others = {key: value for key, value in arguments.items() if key not in constructor and key not in changes}
    if others and accepts_any:
        environment, params = _construct(name, constructor | others)
    else:
        _check(name, others, accepted + fields)
    changes = {key: _parameter(name, key, getattr(params, key), value) for key, value in changes.items()}
    changed = dataclasses.replace(params, **changes)
    return _made(name, arguments, lambda: from_gymnax(environment, changed, name))


def _parameter(name: str, key: str, default: Any, value: Any) -> Any:
    """The value of a parameter in the type of its default: Gymnax selects between parameters, which need one
    type. A traced one as it is. ValueError for another type or shape, NaN, or an episode without a step.
    """
    if isinstance(value, Tracer) or default is None or isinstance(default, str):
        return value

    def refuse(right: str) -> NoReturn:
        raise ValueError(f"{name}: {key} = {show(value)}: must be {right}")

    if isinstance(default, bool | np.bool_):
        if not isinstance(value, bool | np.bool_):
            refuse("True or False")
        return bool(value)
    shape = np.shape(default)
    if isinstance(default, int | float) or shape == ():
        if not is_real(value) or np.shape(value) != () or np.isnan(float(value)):
            refuse("one number")
    elif isinstance(value, list | tuple | np.ndarray | jax.Array):
        if np.shape(value) != shape or not is_real(np.asarray(value)):
            refuse(f"numbers of shape {shape}")
        return jnp.asarray(value, jnp.asarray(default).dtype)
    else:
        refuse(f"numbers of shape {shape}")
    if key == LIMIT and value < 1:
        refuse("at least 1")
    if isinstance(default, float):
        return float(value)
    if float(value).is_integer():
        return int(value)
    if key != LIMIT:
        refuse("a whole number")
    return value


def _made(name: str, arguments: Mapping[str, Any], build: Callable[[], Env]) -> Env:
    """What `build` returns; where these arguments make it fail, ValueError in one line that names them."""
    try:
        return build()
    except Exception as error:
        ours = isinstance(error, RunError | ValueError) and "\n" not in str(error)
        if ours or not arguments:
            raise
        given = ", ".join(f"{key}={show(value)}" for key, value in arguments.items())
        raise ValueError(f"{name}({given}): {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _check(name: str, arguments: Mapping[str, Any], accepted: list[str]) -> None:
    for key in arguments:
        if key not in accepted:
            listed = ", ".join(accepted) or "no arguments"
            raise ValueError(f"{name} has no argument {key!r}{suggest(key, accepted)} (it takes {listed})")


def _construct(name: str, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    gymnax = library()
    for key, value in arguments.items():
        if isinstance(value, Tracer):
            raise ValueError(f"{name}: {key} is a constructor argument and cannot be traced or swept")
    try:
        with jax.ensure_compile_time_eval():  # constructors branch on array values
            return gymnax.make(name, **arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        if name == "MNISTBandit-bsuite":
            raise RunError(
                f"{name} downloads MNIST in its constructor and could not ({reason}); "
                "without a network put the four .gz files of MNIST into /tmp/mnist"
            ) from error
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"{name}({given}): {reason}") from error


def from_gymnax(env: Any, params: Any = None, name: str | None = None) -> Env:
    """A Gymnax (≥ 1.0) environment, a user's own for instance, as an `Env`; `params` default to its own.

    Reward is float32 (), both flags are bool (), observation and state leaves keep one strong dtype, so that
    a scan can carry them. `terminated` and `truncated` may both be true. Leaves of `params` may be traced: a
    traced time limit makes `max_steps` None, traced bounds of actions stay as they are, and observations with
    traced bounds are unbounded. Other bounds are as declared, and a few environments leave theirs (Gymnax's
    MemoryChain, MetaMaze, GaussianBandit). ValueError where `reset` and `step` differ in structure or shape,
    and for what changes an environment elsewhere than in `reset_env`, `step_env` and `is_truncated`, which
    are called here: a Gymnax wrapper, or a `step` or `reset` of its own.
    """
    _check_calls(env)
    with jax.ensure_compile_time_eval():
        params = env.default_params if params is None else params
    name = str(env.name if name is None else name)
    action_space = _space(_declared(env.action_space, params), None)

    def raw_reset(key: Key) -> tuple[PyTree, PyTree]:
        with jax.numpy_rank_promotion("allow"):
            return env.reset_env(key, params)

    def raw_step(key: Key, state: PyTree, action: PyTree) -> tuple[PyTree, PyTree, Array, Array, Array]:
        with jax.numpy_rank_promotion("allow"):
            observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
            return observation, state, reward, terminated, env.is_truncated(state, params)

    actions = jax.tree.map(lambda space: _Leaf(space.shape, space.dtype), action_space)
    observed, carried = _fixed_types(name, raw_reset, raw_step, actions)

    def reset(key: Key) -> tuple[PyTree, PyTree]:
        observation, state = raw_reset(key)
        return _cast(observation, observed), _cast(state, carried)

    def step(key: Key, state: PyTree, action: PyTree) -> tuple[PyTree, PyTree, Array, Array, Array]:
        action = jax.tree.map(lambda like, given: _action(name, given, like), actions, action)
        observation, state, reward, terminated, truncated = raw_step(key, state, action)
        return (
            _cast(observation, observed),
            _cast(state, carried),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.asarray(terminated, bool).reshape(()),
            jnp.asarray(truncated, bool).reshape(()),
        )

    return Env(
        name=name,
        reset=reset,
        step=step,
        observation_space=_space(_declared(env.observation_space, params), observed),
        action_space=action_space,
        max_steps=_max_steps(params),
        truncates_early=not _only_at_its_limit(env, params),
        source=(env, params),
    )


def _check_calls(env: Any) -> None:
    """ValueError where what `from_gymnax` calls is not all that happens in this environment."""
    name, kind = type(env).__name__, type(env)
    for method in ("reset_env", "step_env", "is_truncated"):
        if not hasattr(env, method):
            raise ValueError(f"{name} has no {method}: no environment of Gymnax 1.0 or later")
        if not hasattr(kind, method) and method not in vars(env):  # found by __getattr__ in what it wraps
            ours = _OUR_WRAPPERS.get(name, "wrap the inner one with one of rljax.envs.wrappers instead")
            raise ValueError(f"{name} is a wrapper of Gymnax's, which from_gymnax would pass by: {ours}")
    environments = library().environments
    base, sea = environments.environment.Environment, environments.DeepSea
    # DeepSea's own step keeps statistics over episodes in its state, which nothing here reads.
    for method, known in (("step", (base.step, sea.step)), ("reset", (base.reset,))):
        own = getattr(kind, method, None)
        if own is not None and own not in known:
            raise ValueError(
                f"{name} overrides {method}, which rljax replaces by its own: override {method}_env instead"
            )


_OUR_WRAPPERS = {
    "FlattenObservationWrapper": "use rljax.envs.wrappers.flatten_observation",
    "LogWrapper": "leave it out, every run counts returns and lengths of episodes",
    "StickyActionWrapper": "use rljax.envs.wrappers.sticky_actions",
}


def _action(name: str, given: Any, like: _Leaf) -> Array:
    if jnp.shape(given) != like.shape:
        raise ValueError(
            f"{name}: an action has shape {like.shape}, not {jnp.shape(given)}; vmap over a batch"
        )
    return jnp.asarray(given, like.dtype)


def _max_steps(params: Any) -> int | None:
    """The time limit in steps: None if there is none, if it is traced, or if no run would reach it."""
    limit = getattr(params, LIMIT, None)
    if limit is None or isinstance(limit, Tracer) or not float(limit) < _ENDLESS:
        return None
    return math.ceil(float(limit))


def _only_at_its_limit(env: Any, params: Any) -> bool:
    """Whether Gymnax's own rule truncates, and only after as many steps as `_max_steps` says."""
    rule = library().environments.environment.Environment.is_truncated
    limit = getattr(params, "max_steps_in_episode", None)
    return getattr(type(env), "is_truncated", None) is rule and not isinstance(limit, Tracer)


def _fixed_types(name: str, reset: Callable, step: Callable, action: PyTree) -> tuple[PyTree, PyTree]:
    """Shapes and dtypes of (observation, state) that hold after `reset` and after any number of steps."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    fixed = _strong(jax.eval_shape(reset, key))
    while True:
        stepped = _strong(jax.eval_shape(step, key, fixed[1], action)[:2])
        if jax.tree.structure(stepped) != jax.tree.structure(fixed):
            raise ValueError(f"{name}: reset and step return different structures of observation or state")
        join = lambda path, *pair: _join(name, path, *pair)
        joined = jax.tree_util.tree_map_with_path(join, fixed, stepped)
        if joined == fixed:
            return fixed
        fixed = joined


def _strong(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: _Leaf(leaf.shape, leaf.dtype), tree)


def _join(name: str, path: tuple, one: _Leaf, two: _Leaf) -> _Leaf:
    if one.shape != two.shape:
        part = ("observation", "state")[path[0].idx] + jax.tree_util.keystr(path[1:])
        raise ValueError(f"{name}: {part} has shape {one.shape} after reset and {two.shape} after a step")
    dtype = one.dtype if one.dtype == two.dtype else jnp.promote_types(one.dtype, two.dtype)
    return _Leaf(one.shape, dtype)


def _cast(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` with the dtypes of `like`, strong ones; random keys in a state pass as they are."""
    is_key = lambda dtype: jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x, to: x if is_key(to.dtype) else jnp.asarray(x, to.dtype), tree, like)


def _declared(space: Callable, params: Any) -> Any:
    """The space that an environment declares, or None; its bounds are concrete unless they are traced."""
    try:
        with jax.ensure_compile_time_eval():
            return space(params)
    except NotImplementedError:
        return None


def _space(space: Any, observed: PyTree) -> Space:
    """Our space for Gymnax's: of an action, or of an observation whose shapes and dtypes are `observed`."""
    spaces = library().environments.spaces
    within = lambda key: None if observed is None else part(observed, key)
    if isinstance(space, spaces.Dict):
        return {key: _space(each, within(key)) for key, each in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_space(each, within(i)) for i, each in enumerate(space.spaces))
    if observed is None:
        return _action_space(space)
    if isinstance(observed, _Leaf):
        is_index = observed.shape == () and jnp.issubdtype(observed.dtype, jnp.integer)
        if isinstance(space, spaces.Discrete) and is_index:
            return Discrete(int(space.n), observed.dtype)
        if isinstance(space, spaces.Box):
            low, high = _array(space.low), _array(space.high)
            if all(not isinstance(end, Tracer) and end.shape in ((), observed.shape) for end in (low, high)):
                return Box(low, high, observed.shape, observed.dtype)
    return jax.tree.map(lambda leaf: Box(-np.inf, np.inf, leaf.shape, leaf.dtype), observed)


def _action_space(space: Any) -> Space:
    spaces = library().environments.spaces
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n), space.dtype)
    if isinstance(space, spaces.Box):
        return Box(_array(space.low), _array(space.high), tuple(space.shape), jnp.dtype(space.dtype))
    raise ValueError(f"an action space must be a Discrete, Box, Dict or Tuple, not {type(space).__name__}")


def _array(bound: Any) -> Any:
    """A bound in numpy; a traced one as it is."""
    return bound if isinstance(bound, Tracer) else np.asarray(bound, np.float32)[()]
