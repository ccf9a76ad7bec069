"""An environment of one's own, arguments of a named one, and spaces: what is wrong is told in one line."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs, ppo, types
from rljax.models import contract
from rljax.types import Box, Discrete, Env, MultiDiscrete


def refusal(function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (each caller compares the whole line)
        function(*arguments, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


def own(**changes: Any) -> Env:
    """An environment of one step, of whose `step` some parts are changed."""

    def reset(key: Any) -> tuple[Any, Any]:
        return jnp.zeros(2), jnp.int32(0)

    def step(key: Any, state: Any, action: Any) -> tuple:
        parts = {
            "observation": jnp.zeros(2),
            "state": state + 1,
            "reward": jnp.float32(1),
            "terminated": jnp.bool_(True),
            "truncated": jnp.bool_(False),
        }
        return tuple((parts | changes).values())

    return Env("own", reset, step, Box(-1.0, 1.0, (2,)), Discrete(2), 1)


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            own(terminated=jnp.int32(1)),
            "step gives int32 () as terminated: must be a bool of shape ()",
        ),
        (
            own(truncated=jnp.zeros(1, bool)),
            "step gives bool (1,) as truncated: must be a bool of shape ()",
        ),
        (
            own(reward=jnp.ones(1)),
            "step gives float32 (1,) as reward: must be a number of shape ()",
        ),
        (
            own(state=jnp.float32(1)),
            "the state is int32 () after reset and float32 () after step: give both the same",
        ),
        (
            own(more=1),
            "step must return (observation, state, reward, terminated, truncated), not 6 values",
        ),
        (
            own()._replace(observation_space=Box(-1.0, 1.0, (3,))),
            "the observation has shape (2,), its space says (3,)",
        ),
        (own()._replace(reset=lambda key: 1 / 0), "reset fails: ZeroDivisionError: division by zero"),
    ],
)
def test_an_own_environment_is_looked_at_before_anything_is_compiled(env: Env, line: str) -> None:
    assert refusal(ppo.make, env, ppo.Config()) == f"own: {line}"


def test_the_environments_of_the_tests_keep_the_contract() -> None:
    contract.check_env(own())
    for name in ("CartPole-v1", "Pendulum-v1", "FrozenLake-tabular"):
        contract.check_env(envs.make(name))


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("CartPole-v1", {"gravity": (5, 10)}, "gravity = (5, 10): must be one number"),
        ("CartPole-v1", {"gravity": "abc"}, "gravity = 'abc': must be one number"),
        ("CartPole-v1", {"gravity": math.nan}, "gravity = nan: must be one number"),
        ("CartPole-v1", {"gravity": True}, "gravity = True: must be one number"),
        (
            "CartPole-v1",
            {"max_steps_in_episode": -5},
            "max_steps_in_episode = -5: must be at least 1",
        ),
        (
            "FourRooms-misc",
            {"resample_goal_pos": 2},
            "resample_goal_pos = 2: must be True or False",
        ),
        ("Pong-misc", {"ball_x_speed": 1.5}, "ball_x_speed = 1.5: must be a whole number"),
        (
            "Acrobot-v1",
            {"available_torque": [1.0]},
            "available_torque = [1.0]: must be numbers of shape (3,)",
        ),
    ],
)
def test_an_argument_has_the_type_of_its_default(name: str, arguments: Any, line: str) -> None:
    assert refusal(envs.make, name, **arguments) == f"{name}: {line}"


def test_arguments_that_are_right_reach_the_environment() -> None:
    params = envs.make("CartPole-v1", gravity=np.int64(5), max_steps_in_episode=np.float64(7)).source[1]
    assert (params.gravity, params.max_steps_in_episode) == (5.0, 7)
    assert isinstance(params.gravity, float)
    torque = envs.make("Acrobot-v1", available_torque=[-2.0, 0.0, 2.0]).source[1].available_torque
    np.testing.assert_array_equal(torque, [-2, 0, 2])
    assert "rows=-8" in refusal(envs.make, "Catch-bsuite", rows=-8)


def test_spaces_are_plain() -> None:
    assert MultiDiscrete(np.array([3, 2])) == MultiDiscrete((3, 2)) == MultiDiscrete([3, 2])
    assert hash(MultiDiscrete(np.array([3, 2]))) == hash(MultiDiscrete((3, 2)))
    assert MultiDiscrete(np.array([3, 2])).shape == (2,)
    assert type(Discrete(np.int64(3)).n) is int
    assert Box(0.0, 1.0, [2, 3]).shape == (2, 3)
    nested = {"a": Box(0, 1, (2, 3), np.int8), "b": (Discrete(3), MultiDiscrete((2, 2)))}
    assert types.space_bytes(nested) == 6 + 4 + 8


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (lambda: Discrete(0), "n = 0: must be an integer of at least 1"),
        (lambda: MultiDiscrete(()), "sizes = (): must hold at least one"),
        (
            lambda: MultiDiscrete((2, 0)),
            "sizes = (2, 0): must be integers of at least 1",
        ),
        (
            lambda: MultiDiscrete(3),
            "sizes = 3: must be integers of at least 1",
        ),
        (
            lambda: Box(np.zeros(2), 1.0, (3,)),
            "low = [0. 0.]: must be numbers that broadcast to the shape (3,)",
        ),
        (
            lambda: Box(0.0, math.nan, (3,)),
            "high = nan: must be numbers that broadcast to the shape (3,)",
        ),
    ],
)
def test_spaces_that_are_wrong_are_refused(space: Any, line: str) -> None:
    assert f": {line}" in refusal(space)
