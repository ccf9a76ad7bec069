"""The check of an algorithm: it passes a right one, and says what is wrong with a wrong one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms, envs, testing
from rljax.types import Algorithm

OWN = algorithms.find(Path(__file__).parents[1] / "experiments" / "own_algorithm.py").module
CONFIG = OWN.Config(population=4, num_steps=8, hidden_size=3)
CARTPOLE = envs.make("CartPole-v1")


def changed(change: Callable[[Algorithm], Algorithm]) -> Any:
    """The example with another `make`."""
    made = lambda *arguments: change(OWN.make(*arguments))
    return SimpleNamespace(
        Config=OWN.Config, State=OWN.State, Metrics=OWN.Metrics, make=made, __name__="changed"
    )


def test_the_example_passes() -> None:
    testing.check_algorithm(OWN, CARTPOLE, CONFIG)


def uncounted(algorithm: Algorithm) -> Algorithm:
    def step(key: Any, state: Any) -> Any:
        after, metrics = algorithm.step(key, state)
        return after.replace(iteration=state.iteration), metrics

    return algorithm._replace(step=step)


def key_twice(algorithm: Algorithm) -> Algorithm:
    def step(key: Any, state: Any) -> Any:
        moved = jax.random.normal(key, ())
        after, metrics = algorithm.step(key, state)
        return after.replace(params=jax.tree.map(lambda x: x + moved, after.params)), metrics

    return algorithm._replace(step=step)


def big_constant(algorithm: Algorithm) -> Algorithm:
    table = np.arange(5_000, dtype=np.float32)

    def step(key: Any, state: Any) -> Any:
        after, metrics = algorithm.step(key, state)
        params = jax.tree.map(lambda x: x + 1e-6 * jnp.asarray(table)[state.iteration], after.params)
        return after.replace(params=params), metrics

    return algorithm._replace(step=step)


def float_count(algorithm: Algorithm) -> Algorithm:
    def step(key: Any, state: Any) -> Any:
        after, metrics = algorithm.step(key, state)
        return after, metrics._replace(gradient_norm=metrics.gradient_norm._replace(count=jnp.float32(1)))

    return algorithm._replace(step=step)


def always_greedy(algorithm: Algorithm) -> Algorithm:
    def policy(state: Any) -> Any:
        made = algorithm.policy(state)
        return made._replace(act=lambda key, obs, carry, greedy: made.act(key, obs, carry, True))

    return algorithm._replace(policy=policy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (uncounted, r"State\.iteration after three steps is \[0, 0, 0\]"),
        (key_twice, "changed uses a key twice"),
        (big_constant, "its program holds 20,000 bytes of constants"),
        (float_count, r"a metric is a float32 over a float32: Mean\(float32, int32\)"),
        (always_greedy, "the policy draws no actions, explores = True says otherwise"),
    ],
)
def test_what_is_wrong_is_said(change: Callable, told: str) -> None:
    with pytest.raises(AssertionError, match=told) as error:
        testing.check_algorithm(changed(change), CARTPOLE, CONFIG)
    assert "\n" not in str(error.value)


def test_a_greedy_policy_may_be_said_to_be_one() -> None:
    testing.check_algorithm(changed(always_greedy), CARTPOLE, CONFIG, explores=False)
