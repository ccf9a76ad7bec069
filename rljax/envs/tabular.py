"""Finite Markov decision processes as arrays, and as environments: the ground truth of `rljax.math.tabular`.

    env = envs.make("FrozenLake-tabular", is_slippery=False)
    transition, reward, discount = tabular.arrays(env.source)
    v = math.tabular.value_iteration(transition, reward, discount).value

The episode ends with what a row of P lacks to 1, and on arriving in a state after which nothing follows (its
rows of P and its expected rewards are all 0). Such a state has the value 0, so that ending there is exact; it
exists because the last observation of an episode should be what Gymnasium shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.types import Array, Discrete, Env, Key

ROUNDING = 1e-6  # a row of P that sums to 1 up to this never ends the episode


class MDP(NamedTuple):
    """S states and A actions. Arrays of NumPy or JAX, which may be traced."""

    transition: Any  # P (S, A, S): probability of the next state; what is lacking to 1 ends the episode
    reward: Any  # (S, A) expected, or (S, A, S) of arriving in the next state (0 where the rest ends it)
    discount: Any  # γ, of the values; an environment does not discount, an algorithm's Config has its own
    start: Any  # (S,) distribution of the first state


def arrays(mdp: MDP) -> tuple[Array, Array, Array]:
    """(transition (S, A, S), expected reward (S, A), discount ()) as `rljax.math.tabular` takes them."""
    transition, reward = jnp.asarray(mdp.transition, float), jnp.asarray(mdp.reward, float)
    if reward.ndim == 3:
        reward = (transition * reward).sum(-1)
    return transition, reward, jnp.asarray(mdp.discount, float)


class State(NamedTuple):
    state: Array  # () int32
    time: Array  # () int32, steps so far


def from_mdp(mdp: MDP, name: str = "MDP", max_steps: int | None = None) -> Env:
    """An environment that samples `mdp`; observations are states, and `Env.source` is `mdp`.

    An action outside 0 .. A − 1 is taken for the nearest. The last observation of an episode is the state
    that was arrived in, or left, where the rest of a row ended it.

    Args:
        mdp: leaves may be traced, so that environments can be swept; else they are checked.
        max_steps: truncates an episode after this many steps; None: never.

    Raises: ValueError saying in one line what is wrong with an array.
    """
    num_states, num_actions = check(mdp)
    is_count = isinstance(max_steps, int) and not isinstance(max_steps, bool) and max_steps >= 1
    if max_steps is not None and not is_count:
        raise ValueError(f"{name}: max_steps = {max_steps}: must be None or an integer of at least 1")
    xp = jnp if _is_traced(mdp) else np
    transition, reward, start = (xp.asarray(x) for x in (mdp.transition, mdp.reward, mdp.start))
    expected = reward if reward.ndim == 2 else (transition * reward).sum(-1)
    over = (transition == 0).all((1, 2)) & (expected == 0).all(1)  # (S,)
    if reward.ndim == 3:
        reward = xp.concatenate([reward, xp.zeros_like(reward[..., :1])], -1)  # [..., S]: the rest
    following, first, rewards, over = (
        jnp.asarray(x)
        for x in (
            _cumulative(xp, transition).astype(np.float32),
            _cumulative(xp, start).astype(np.float32),
            reward.astype(np.float32),
            over,
        )
    )

    def draw(key: Key, cumulative: Array) -> Array:
        return (jax.random.uniform(key) >= cumulative).sum(dtype=jnp.int32)

    def reset(key: Key) -> tuple[Array, State]:
        state = draw(key, first)
        return state, State(state, jnp.int32(0))

    def step(key: Key, state: State, action: Array) -> tuple[Array, State, Array, Array, Array]:
        here = (state.state, jnp.clip(action, 0, num_actions - 1))
        drawn = draw(key, following[here])
        arrived = jnp.where(drawn == num_states, state.state, drawn)
        gained = rewards[(*here, drawn)] if rewards.ndim == 3 else rewards[here]
        time = state.time + 1
        truncated = jnp.bool_(False) if max_steps is None else time >= max_steps
        terminated = (drawn == num_states) | over[arrived]
        return arrived, State(arrived, time), gained, terminated, truncated

    return Env(
        name=name,
        reset=reset,
        step=step,
        observation_space=Discrete(num_states),
        action_space=Discrete(num_actions),
        max_steps=max_steps,
        truncates_early=False,
        source=mdp,
    )


def _cumulative(xp: Any, probability: Any) -> Any:
    """Sums (..., S) of a last axis of probabilities: the drawn index is how many of them are at most u < 1.

    From the last possible index on they are infinite where the whole is 1, so that rounding never draws what
    has no probability.
    """
    index = np.broadcast_to(np.arange(probability.shape[-1]), probability.shape)
    last = xp.where(probability > 0, index, 0).max(-1, keepdims=True)
    whole = probability.sum(-1, keepdims=True) >= 1 - ROUNDING
    return xp.where(whole & (index >= last), np.inf, probability.cumsum(-1))


def _is_traced(mdp: MDP) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in mdp)


def check(mdp: MDP) -> tuple[int, int]:
    """(S, A), if the arrays are an MDP; the values of traced ones are not looked at.

    Raises: ValueError naming the array, what is wrong with it and what would be right.
    """
    shapes = {field: np.shape(leaf) for field, leaf in zip(MDP._fields, mdp, strict=True)}
    shape = shapes["transition"]
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"MDP.transition has shape {shape}: must be (S, A, S), with at least 1 of each")
    num_states, num_actions = shape[:2]
    expected = {
        "reward": [(num_states, num_actions), shape],
        "discount": [()],
        "start": [(num_states,)],
    }
    for field, right in expected.items():
        if shapes[field] not in right:
            listed = " or ".join(map(str, right))
            raise ValueError(f"MDP.{field} has shape {shapes[field]}: must be {listed} for this transition")
    if _is_traced(mdp):
        return num_states, num_actions
    concrete = MDP(*(np.asarray(leaf, np.float64) for leaf in mdp))
    for field, leaf in zip(MDP._fields, concrete, strict=True):
        if not np.isfinite(leaf).all():
            raise ValueError(f"MDP.{field} holds {_first(leaf, ~np.isfinite(leaf))}: must be finite")
    for field in ("transition", "start"):
        leaf = getattr(concrete, field)
        if (leaf < 0).any():
            raise ValueError(f"MDP.{field} holds {_first(leaf, leaf < 0)}: a probability is at least 0")
    total = concrete.transition.sum(-1)
    if (total > 1 + ROUNDING).any():
        found = _first(total, total > 1 + ROUNDING)
        raise ValueError(f"MDP.transition has a row with the sum {found}: must be at most 1")
    if abs(concrete.start.sum() - 1) > ROUNDING:
        raise ValueError(f"MDP.start has the sum {concrete.start.sum():g}: must be 1")
    if not 0 <= concrete.discount <= 1:
        raise ValueError(f"MDP.discount = {concrete.discount:g}: must be at least 0 and at most 1")
    return num_states, num_actions


def _first(values: np.ndarray, where: np.ndarray) -> str:
    index = [int(each) for each in np.argwhere(where)[0]]
    return f"{values[tuple(index)]:g} at {index}" if index else f"{values:g}"


def three_states(discount: float = 0.99) -> MDP:
    """States 0, 1, 2 and actions 0, 1: V* = (γ/2, 1, 0), and V = (0, 1, 0) if 0 and 1 take action 1.

    From 0, action 0 leads to 1 and action 1 to 2, each with probability 1/2; everything else ends the
    episode. Reward 1 for action 1 in state 1, else 0. An episode begins in any state, so that all are seen.
    """
    transition, reward = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transition[0, 0, 1] = transition[0, 1, 2] = 0.5
    reward[1, 1] = 1.0
    return MDP(transition, reward, discount, np.full(3, 1 / 3))


# S start, F frozen, H hole, G goal: the maps of Gymnasium's FrozenLake-v1 and FrozenLake8x8-v1.
LAKES = {
    4: "SFFF FHFH FFFH HFFG",
    8: "SFFFFFFF FFFFFFFF FFFHFFFF FFFFFHFF FFFHFFFF FHHFFFHF FHFFHFHF FFFHFFFG",
}


def frozen_lake(size: int = 4, is_slippery: bool = True, discount: float = 0.99) -> MDP:
    """Gymnasium's FrozenLake-v1, `size` 4 or 8: reward 1 on reaching the goal; a hole or the goal is the end.

    Actions 0 left, 1 down, 2 right, 3 up; on slippery ice each of the chosen direction and the two across it
    has probability 1/3. States are numbered row by row.
    """
    if size not in LAKES:
        raise ValueError(f"frozen_lake: size = {size}: must be one of {', '.join(map(str, LAKES))}")
    if not isinstance(is_slippery, bool):
        raise ValueError(f"frozen_lake: is_slippery = {is_slippery!r}: must be True or False")
    ice = LAKES[size].replace(" ", "")
    transition, reward = np.zeros((size**2, 4, size**2)), np.zeros((size**2, 4, size**2))
    for state, action, offset in np.ndindex(size**2, 4, 3):
        if ice[state] in "SF" and (is_slippery or offset == 1):
            arrived = _move(state, (action + offset - 1) % 4, size, size)
            transition[state, action, arrived] += 1 / 3 if is_slippery else 1.0
    reward[:, :, ice.index("G")] = 1.0
    return MDP(transition, reward, discount, np.eye(size**2)[ice.index("S")])


def cliff_walking(discount: float = 1.0) -> MDP:
    """Gymnasium's CliffWalking-v1 (Sutton & Barto 2018, example 6.6): 4 rows of 12, from corner to corner.

    Actions 0 up, 1 right, 2 down, 3 left. Reward −1 per step; −100 for a step off the cliff, the lowest row
    between the corners, after which one stands at the start again. The goal is the end.
    """
    rows, columns = 4, 12
    begin, goal = 36, 47
    transition, reward = np.zeros((48, 4, 48)), np.zeros((48, 4))
    for state, action in np.ndindex(48, 4):
        if state == goal:
            continue
        arrived = _move(state, (3, 2, 1, 0)[action], rows, columns)
        falls = begin < arrived < goal
        transition[state, action, begin if falls else arrived] = 1.0
        reward[state, action] = -100.0 if falls else -1.0
    return MDP(transition, reward, discount, np.eye(48)[begin])


def _move(state: int, direction: int, rows: int, columns: int) -> int:
    """The field left (0), below (1), right (2) or above (3), or the same one at the edge."""
    row, column = divmod(state, columns)
    down, right = ((0, -1), (1, 0), (0, 1), (-1, 0))[direction]
    row, column = (min(max(row + down, 0), rows - 1), min(max(column + right, 0), columns - 1))
    return row * columns + column


def random_mdp(
    seed: int = 0,
    num_states: int = 16,
    num_actions: int = 4,
    branching: int = 3,
    termination: float = 0.05,
    discount: float = 0.99,
) -> MDP:
    """A Garnet (Archibald, McKinnon & Thomas 1995) with ends: the same for the same seed on every machine.

    Every action leads to `branching` different states, whose probabilities cut 1 − `termination` at uniform
    points; rewards are standard normal per state and action; an episode begins in any state.
    """
    counts = {"seed": (seed, 0), "num_states": (num_states, 1), "num_actions": (num_actions, 1)}
    for field, (given, low) in (counts | {"branching": (branching, 1)}).items():
        if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < low:
            raise ValueError(f"random_mdp: {field} = {given}: must be an integer of at least {low}")
    if branching > num_states:
        raise ValueError(f"random_mdp: branching = {branching}: must be at most num_states = {num_states}")
    if not 0 <= termination <= 1:
        raise ValueError(f"random_mdp: termination = {termination}: must be at least 0 and at most 1")
    generator = np.random.default_rng(seed)
    transition = np.zeros((num_states, num_actions, num_states))
    for state, action in np.ndindex(num_states, num_actions):
        cuts = np.sort(generator.random(branching - 1))
        where = generator.choice(num_states, branching, replace=False)
        transition[state, action, where] = (1 - termination) * np.diff(cuts, prepend=0.0, append=1.0)
    reward = generator.normal(size=(num_states, num_actions))
    return MDP(transition, reward, discount, np.full(num_states, 1 / num_states))


def _three_states(discount: float = 0.99, max_steps: int | None = 2) -> Env:
    return from_mdp(three_states(discount), "ThreeState-tabular", max_steps)


def _frozen_lake(is_slippery: bool = True, discount: float = 0.99, max_steps: int | None = 100) -> Env:
    return from_mdp(frozen_lake(4, is_slippery, discount), "FrozenLake-tabular", max_steps)


def _frozen_lake_8x8(is_slippery: bool = True, discount: float = 0.99, max_steps: int | None = 200) -> Env:
    return from_mdp(frozen_lake(8, is_slippery, discount), "FrozenLake8x8-tabular", max_steps)


def _cliff_walking(discount: float = 1.0, max_steps: int | None = 200) -> Env:
    return from_mdp(cliff_walking(discount), "CliffWalking-tabular", max_steps)


def _random_mdp(
    seed: int = 0,
    num_states: int = 16,
    num_actions: int = 4,
    branching: int = 3,
    termination: float = 0.05,
    discount: float = 0.99,
    max_steps: int | None = 100,
) -> Env:
    mdp = random_mdp(seed, num_states, num_actions, branching, termination, discount)
    return from_mdp(mdp, "RandomMDP-tabular", max_steps)


# Time limits are Gymnasium's, which has none for CliffWalking.
PROBLEMS: dict[str, Callable[..., Env]] = {
    "ThreeState-tabular": _three_states,
    "FrozenLake-tabular": _frozen_lake,
    "FrozenLake8x8-tabular": _frozen_lake_8x8,
    "CliffWalking-tabular": _cliff_walking,
    "RandomMDP-tabular": _random_mdp,
}
