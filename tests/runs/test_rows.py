"""A row of metrics is the mean over all of its iterations, however they were cut into chunks; keys and
members are those that were asked for.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from rljax.runs.program import engine, host_rewards, loop
from rljax.types import Algorithm, Box, Discrete, Env, Mean, Policy


class Metrics(NamedTuple):
    value: Mean


@pytest.mark.parametrize("pace", [0.0, 1e9])
def test_a_row_is_the_mean_over_all_of_its_chunks(pace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration i of 5 counts i values of i; rows end after 3 and 5. Member 1 has none of them."""
    monkeypatch.setattr(loop, "PACE", pace)
    done, chunks = [0], []

    def advance(states: Any, n: int, retry: int) -> Any:
        numbers = np.arange(done[0] + 1, done[0] + n + 1)
        done[0] += n
        chunks.append(n)
        zero = np.zeros(1)
        total, count = (np.concatenate([[each.sum()], zero]) for each in (numbers**2, numbers))
        return states, Metrics(Mean(total, count)), np.full(2, -1)

    program: Any = SimpleNamespace(advance=advance, fetch=lambda tree: tree)
    rows = [row for _, row in loop.advance(program, (), 0, 5, [3])]
    assert [row.iteration for row in rows] == [3, 5]
    assert chunks == ([1] * 5 if pace == 0 else [1, 2, 2])
    np.testing.assert_allclose([row.metrics["value"] for row in rows], [[14 / 6, np.nan], [41 / 9, np.nan]])


@struct.dataclass
class Drawn:
    """What an algorithm drew with the key of `init` and with that of each step, (I,)."""

    seed: Any
    numbers: Any
    iteration: Any


def drawing(world: Any, config: Any, network: Any = None, frozen: Any = None) -> Algorithm:
    def init(key: Any) -> Drawn:
        return Drawn(jax.random.bits(key), jnp.zeros(4, jnp.uint32), jnp.int32(0))

    def step(key: Any, state: Drawn) -> tuple[Drawn, Metrics]:
        numbers = state.numbers.at[state.iteration].set(jax.random.bits(key))
        after = Drawn(state.seed, numbers, state.iteration + 1)
        return after, Metrics(Mean(config.scale * state.iteration, jnp.int32(1)))

    return Algorithm(init, step, lambda state: Policy(tuple, lambda *_: None))


@struct.dataclass
class Config:
    scale: float = 1.0


def test_every_member_iteration_and_retry_draws_other_numbers() -> None:
    """Three members, of which two have one seed and differ in a Config leaf: all three are told of."""
    scales, seeds = [1.0, 2.0, 3.0], [7, 7, 8]
    world: Any = None
    program = engine.build(drawing, world, Config(), {"scale": scales}, seeds)
    states, metrics, bad = program.advance(program.init(), 4)
    drawn, value, bad = (program.fetch(tree) for tree in (states, metrics.value.total, bad))
    np.testing.assert_array_equal(value, [0 + 1 + 2 + 3, 2 * 6, 3 * 6])
    np.testing.assert_array_equal(bad, [-1, -1, -1])
    np.testing.assert_array_equal(drawn.numbers[0], drawn.numbers[1])
    assert drawn.seed[0] == drawn.seed[1] != drawn.seed[2]
    assert len(set(drawn.numbers[[0, 2]].ravel().tolist())) == 8
    again = program.fetch(program.advance(program.init(), 4, 1)[0]).numbers
    assert not set(again.ravel().tolist()) & set(drawn.numbers.ravel().tolist())


def test_a_key_belongs_to_one_iteration_and_retry() -> None:
    keys = [
        host_rewards.iteration_key(jax.random.key(0), jnp.int32(i), j) for i in range(4) for j in range(3)
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 12


def test_rows_of_a_resumed_run_are_where_those_of_a_whole_one_are() -> None:
    advance = lambda states, n, retry: (states, Metrics(Mean(np.ones(1), np.ones(1))), np.full(1, -1))
    program: Any = SimpleNamespace(advance=advance, fetch=lambda tree: tree)
    rows = [row.iteration for _, row in loop.advance(program, (), 2, 8, [3, 0])]
    assert rows == [3, 6, 8]


def test_an_evaluation_has_keys_of_its_own() -> None:
    """The reward is a random number of the step: those of the iteration of the same number are others."""
    reset = lambda key: (jnp.zeros(1), jnp.int32(0))
    step = lambda key, state, action: (
        jnp.zeros(1), state, jax.random.uniform(key), jnp.bool_(True), jnp.bool_(False)
    )  # fmt: skip
    env = Env("random", reset, step, Box(-1.0, 1.0, (1,)), Discrete(2), max_steps=1)
    policy = Policy(tuple, lambda key, obs, carry, greedy: (jnp.zeros(len(obs), jnp.int32), carry))
    make = lambda *arguments: drawing(*arguments)._replace(policy=lambda state: policy)
    program = engine.build(make, env, Config(), {}, [5])
    run_key = jax.random.split(jax.random.key(5))[1]
    for salt in (0, 3):
        found = program.fetch(program.evaluate(program.init(), salt, 4))[0]
        key = jax.random.fold_in(jax.random.fold_in(run_key, 2**31 - 1), salt)
        np.testing.assert_array_equal(found[0], engine.episodes(env, policy, key, 4, True)[0])
