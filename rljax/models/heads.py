"""From an action space to a policy: how many numbers a network must give, their distribution, and the
env's action.

An algorithm stores the *raw* action, which its log-probabilities are about; the environment gets
`to_env(raw)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.checks import suggest
from rljax.math import distributions, intervals
from rljax.math.distributions import Distribution
from rljax.types import Array, Box, Discrete, Key, MultiDiscrete, Policy, PyTree, Space

KINDS = ("gaussian", "tanh")
MOST_INTEGERS = 2.0**23  # above it float32 has no halves


class Head(NamedTuple):
    """The policy over one action space."""

    size: int  # numbers per action: logits, or means
    continuous: bool  # the parameters are (mean, log_std) instead of logits
    distribution: Distribution
    to_env: Callable[[Array], Array]  # (..., raw action) -> the action that the environment takes

    def policy(self, parameters: Callable[[PyTree], Any]) -> Policy:
        """What evaluation runs, from a feed-forward function of observations (B, ...) to the distribution's
        parameters.
        """

        def act(key: Key, obs: PyTree, carry: tuple, greedy: bool | Array) -> tuple[PyTree, tuple]:
            chosen = parameters(obs)
            mode, drawn = self.distribution.mode(chosen), self.distribution.sample(key, chosen)
            rows = jnp.reshape(greedy, jnp.shape(greedy) + (1,) * (mode.ndim - jnp.ndim(greedy)))
            return self.to_env(jnp.where(rows, mode, drawn)), carry

        return Policy(tuple, act)


def policy_head(space: Space, kind: str = "gaussian") -> Head:
    """The policy over `space`: categorical, multi-categorical, or for a Box one of two Gaussians.

    `kind` = "gaussian": the raw action ±1 stands for the bounds, beyond which the environment's action is
    clipped (the log-probability is of the unclipped one); "tanh": squashed into the bounds. Unbounded
    components are passed on as they are. Where the environment takes integers, those between the bounds get
    equal parts of [−1, 1], and unbounded ones are rounded to the nearest.

    Raises: ValueError for a space that no policy fits.
    """
    if kind not in KINDS:
        raise ValueError(
            f"action_distribution = {kind!r}: must be one of {', '.join(KINDS)}{suggest(kind, KINDS)}"
        )
    if isinstance(space, Discrete):
        return Head(space.n, False, distributions.categorical, lambda raw: raw.astype(space.dtype))
    if isinstance(space, MultiDiscrete):
        return Head(
            sum(space.sizes),
            False,
            distributions.multi_categorical(space.sizes),
            lambda raw: raw.astype(space.dtype),
        )
    if not isinstance(space, Box):
        raise ValueError(
            f"action space {space}: a policy takes Discrete, MultiDiscrete or Box; wrap the environment"
        )
    traced = any(isinstance(bound, Tracer) for bound in (space.low, space.high))
    xp = jnp if traced else np
    low, high = (
        xp.broadcast_to(xp.asarray(x, xp.float32), space.shape).reshape(-1) for x in (space.low, space.high)
    )
    finite = xp.isfinite(low) & xp.isfinite(high)
    if kind == "tanh" and not traced and not finite.all():
        raise ValueError(
            f"action_distribution = 'tanh': needs finite action bounds, this space is {space}; use 'gaussian'"
        )
    bottom, top = (xp.where(finite, end, 0) for end in (low, high))
    if space.is_integer and not traced and (np.maximum(-bottom, top) >= MOST_INTEGERS).any():
        raise ValueError(
            f"action space {space}: integers must be below 2**23 or unbounded; "
            "use rljax.envs.wrappers.map_action"
        )
    # from halves, as the difference of two large bounds overflows
    scale = xp.where(finite, top / 2 - bottom / 2, 1).astype(xp.float32)
    centre = (top / 2 + bottom / 2).astype(xp.float32)
    squash = jnp.tanh if kind == "tanh" else lambda raw: raw

    def to_env(raw: Array) -> Array:
        batch = raw.shape[:-1]
        rows = lambda x: jnp.asarray(x).reshape((1,) * len(batch) + (-1,))
        squashed = squash(raw)
        action = squashed * rows(scale) + rows(centre)
        if space.is_integer:
            cells = intervals.cell((squashed + 1) / 2, rows(bottom), rows(top))
            action = jnp.where(rows(finite), cells, jnp.round(action))
        action = jnp.clip(action, rows(low), rows(high))
        return action.reshape(*batch, *space.shape).astype(space.dtype)

    chosen = distributions.tanh_gaussian if kind == "tanh" else distributions.diagonal_gaussian
    return Head(low.size, True, chosen, to_env)


# Which algorithms fit an action space, for the messages of those that do not.
POLICY_METHODS = "ppo, a2c, reinforce, trpo"
DISCRETE_METHODS = f"dqn, c51, qrdqn, iqn, rainbow, pqn, discrete_sac, {POLICY_METHODS}"
CONTINUOUS_METHODS = f"ddpg, td3, sac, {POLICY_METHODS}"


def discrete_actions(space: Space, algorithm: str) -> tuple[int, Callable[[Array], Array]]:
    """(A, to_env) of a Discrete space, for an algorithm that takes no other: the number of actions, and from
    their numbers (...) to what the environment takes.

    Raises: ValueError naming the algorithms that fit the space.
    """
    if isinstance(space, Discrete):
        return space.n, policy_head(space).to_env
    raise ValueError(_misfit(space, algorithm, "a Discrete action space"))


def continuous_actions(space: Space, algorithm: str) -> tuple[int, Callable[[Array], Array]]:
    """(D, to_env) of a Box with finite bounds, for an algorithm that takes no other: the size of a raw action
    in [−1, 1], and from raw actions (..., D) to what the environment takes.

    Raises: ValueError naming the algorithms that fit the space.
    """
    if not isinstance(space, Box):
        raise ValueError(_misfit(space, algorithm, "a Box of actions with finite bounds"))
    bounds = (space.low, space.high)
    if not any(isinstance(bound, Tracer) for bound in bounds) and not all(
        np.isfinite(bound).all() for bound in bounds
    ):
        raise ValueError(
            f"{algorithm} needs finite action bounds, this space is {space}: use {POLICY_METHODS}, "
            "or rljax.envs.wrappers.map_action"
        )
    head = policy_head(space)
    return head.size, head.to_env


def _misfit(space: Space, algorithm: str, needs: str) -> str:
    fitting = {Discrete: DISCRETE_METHODS, Box: CONTINUOUS_METHODS, MultiDiscrete: POLICY_METHODS}
    names = fitting.get(type(space))
    hint = f"use {names}" if names else "wrap the environment"
    return f"{algorithm} needs {needs}, this one is {space}: {hint}"
