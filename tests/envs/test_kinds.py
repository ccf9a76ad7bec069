"""The kinds that a list shows are those of the environments themselves."""

import pytest

from rljax import envs
from rljax.envs.kinds import acted, kinds, observed
from rljax.types import Box, Discrete, MultiDiscrete


def test_words():
    assert acted(MultiDiscrete((3, 2))) == "multi-discrete 3x2"
    assert acted(Box(-1.0, 1.0, (2,))) == "continuous 2"
    assert observed(Box(0.0, 1.0, (84, 84, 4))) == "image 84x84x4"
    assert observed(Box(0.0, 1.0, ())) == "number"
    assert observed({"a": Discrete(2), "b": Discrete(3)}) == "dict of 2"


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-misc", "CliffWalking-tabular"])
def test_kinds_are_those_of_the_environment(name):
    env = envs.make(name)
    assert kinds(name) == (observed(env.observation_space), acted(env.action_space))


def test_nothing_is_downloaded_for_a_list():
    """Its constructor needs a network, or fails."""
    assert kinds("MNISTBandit-bsuite") == ("matrix 28x28", "discrete 10")
