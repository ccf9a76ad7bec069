"""Experience replay against a list of everything that happened."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.algorithms import dqn
from rljax.envs import wrappers
from rljax.learning import replay
from rljax.learning.env_rollouts import Outcome, no_episodes
from rljax.learning.replay import ONGOING, TERMINATED, TRUNCATED
from rljax.types import Box, Discrete, Env

DISCOUNT = 0.9


def config(**fields: Any) -> SimpleNamespace:
    values = {
        "replay": "uniform", "buffer_size": 40, "batch_size": 64, "n_step": 1, "num_envs": 2,
        "discount": DISCOUNT, "learning_starts": 10, "priority_exponent": 1.0, "importance_exponent": 0.5,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **fields})


def world(max_steps: int | None) -> Env:
    nothing: Any = None
    return Env("stream", nothing, nothing, Box(0, 1, (3,)), Discrete(4), max_steps)


class Stream:
    """N environments whose observations name (time, environment, whether final), and all they ever did."""

    def __init__(
        self, num_envs: int, limit: int | None, rows: int, seed: int, dtype: Any = np.float32
    ) -> None:
        rng = np.random.default_rng(seed)
        self.num_envs, self.rows, self.dtype = num_envs, rows, dtype
        self.reward = rng.normal(size=(rows, num_envs)).astype(np.float32)
        self.action = rng.integers(0, 4, (rows, num_envs)).astype(np.int32)
        self.end = np.zeros((rows, num_envs), int)
        length = np.zeros(num_envs, int)
        for t in range(rows):
            length += 1
            self.end[t] = np.where(rng.random(num_envs) < 0.1, TERMINATED, ONGOING)
            if limit is not None:
                self.end[t][(length >= limit) & (self.end[t] == ONGOING)] = TRUNCATED
            length[self.end[t] != ONGOING] = 0

    def obs(self, t: int, final: bool = False) -> np.ndarray:
        rows = [[t, n, final] for n in range(self.num_envs)]
        return np.asarray(rows, self.dtype)

    def play(self, made: replay.Replay) -> Any:
        ring = made.init(jnp.asarray(self.obs(0)), jnp.zeros(self.num_envs, jnp.int32))
        add = jax.jit(made.add)
        for t in range(self.rows):
            done = self.end[t] != ONGOING
            final = np.where(done[:, None], self.obs(t + 1, True), self.obs(t + 1))
            outcome = Outcome(
                jnp.asarray(final.astype(self.dtype)), jnp.asarray(self.reward[t]),
                jnp.asarray(self.end[t] == TERMINATED), jnp.asarray(self.end[t] == TRUNCATED), no_episodes(),
            )  # fmt: skip
            ring = add(ring, jnp.int32(t), jnp.asarray(self.action[t]), outcome, jnp.asarray(self.obs(t + 1)))
        return ring

    def expected(self, start: int, env: int, n: int) -> tuple[float, float, list[int]]:
        """R, Γ and the observation to bootstrap from, by the definition."""
        total, factor = 0.0, 1.0
        for t in range(start, start + n):
            total += factor * float(self.reward[t, env])
            factor *= DISCOUNT
            if self.end[t, env] == TERMINATED:
                return total, 0.0, []
            if self.end[t, env] == TRUNCATED:
                return total, factor, [t + 1, env, 1]
        return total, factor, [start + n, env, 0]


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("limit", "told", "rows"),
    [(7, 7, 5), (7, 7, 200), (7, 3, 21), (7, None, 200), (None, 50, 100), (1, 1, 100)],
)
def test_a_sample_is_what_happened(kind: str, n: int, limit: int | None, told: int | None, rows: int) -> None:
    made_for = config(replay=kind, n_step=n, batch_size=2048, buffer_size=4096 if rows < 30 else 40)
    stream = Stream(2, limit, rows, seed=n + rows)
    made = replay.KINDS[kind](made_for, told or 1)
    batch = made.sample(jax.random.key(1), stream.play(made), jnp.int32(rows), jnp.float32(0))
    batch = jax.tree.map(np.asarray, batch)
    seen = set()
    for i in range(2048):
        start, env = int(batch.obs[i, 0]), int(batch.obs[i, 1])
        assert int(batch.obs[i, 2]) == 0
        assert batch.action[i] == stream.action[start, env]
        total, factor, following = stream.expected(start, env, n)
        np.testing.assert_allclose(batch.reward[i], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.discount[i], factor, rtol=1e-6)
        assert not following or np.asarray(batch.next_obs[i]).tolist() == following
        seen.add((start, env))
    kept = min(rows - n + 1, 4096 if rows < 30 else 20)
    assert seen == {(rows - n - age, env) for age in range(kept) for env in range(2)}
    assert (np.asarray(batch.weight) > 0).all()


def test_a_time_limit_over_an_environment_that_truncates_by_itself_loses_nothing() -> None:
    """Truncated after 3 steps, with a limit of 10: every final observation is there, none weighs 0."""
    made_for, stream = config(batch_size=40), Stream(2, 3, 60, seed=0)
    made = replay.make(made_for, wrappers.time_limit(world(None), 10))
    ring, keys = stream.play(made), jax.random.split(jax.random.key(1), 50)
    batches = jax.vmap(lambda key: made.sample(key, ring, jnp.int32(60), jnp.float32(0)))(keys)
    batch = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), batches)
    assert (np.asarray(batch.weight) == 1).all()
    ends = 0
    for i in range(2_000):
        following = stream.expected(int(batch.obs[i, 0]), int(batch.obs[i, 1]), 1)[2]
        assert not following or np.asarray(batch.next_obs[i]).tolist() == following
        ends += bool(following) and following[2] == 1
    assert ends > 200


@pytest.mark.parametrize(
    ("limit", "early", "rows"), [(7, True, 22), (7, False, 4), (None, True, 22), (None, False, 2)]
)
def test_room_for_final_observations_is_what_the_environment_says(limit: Any, early: bool, rows: int) -> None:
    env = world(limit)._replace(truncates_early=early)
    made = replay.make(config(batch_size=8), env)  # 20 rows and the one that follows
    ring = jax.eval_shape(made.init, jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))
    assert ring.final.shape == (rows, 2, 3)


def test_an_env_that_truncates_sooner_than_it_promised_loses_a_target_but_gets_no_wrong_one() -> None:
    made_for, stream = config(batch_size=4096, num_envs=2), Stream(2, 3, 60, seed=0)
    made = replay.KINDS["uniform"](made_for, 10)
    batch = made.sample(jax.random.key(1), stream.play(made), jnp.int32(60), jnp.float32(0))
    batch = jax.tree.map(np.asarray, batch)
    lost = np.asarray(batch.weight) == 0
    assert 0 < lost.mean() < 0.5
    for i in np.flatnonzero(~lost):
        following = stream.expected(int(batch.obs[i, 0]), int(batch.obs[i, 1]), 1)[2]
        assert not following or np.asarray(batch.next_obs[i]).tolist() == following


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32, np.int32])
@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_observations_keep_their_dtype_and_are_stored_once(dtype: Any, kind: str) -> None:
    made = replay.KINDS[kind](config(buffer_size=4000, num_envs=4), 100)
    ring = jax.eval_shape(made.init, jnp.zeros((4, 5, 5), dtype), jnp.zeros(4, jnp.int32))
    assert ring.obs.dtype == ring.final.dtype == dtype
    assert ring.obs.shape == (1001, 4, 5, 5)
    assert ring.final.shape[0] == 12  # one per time limit, not one per transition
    batch = jax.eval_shape(made.sample, jax.random.key(0), ring, jnp.int32(9), jnp.float32(0))
    assert batch.obs.dtype == batch.next_obs.dtype == dtype


def test_pytree_observations_and_vector_actions() -> None:
    made = replay.KINDS["uniform"](config(num_envs=3), 10)
    obs = {"a": jnp.ones((3, 2)), "b": jnp.ones((3,), jnp.uint8)}
    ring = made.init(obs, jnp.zeros((3, 5)))
    flags = jnp.zeros(3, bool)
    ring = made.add(
        ring, jnp.int32(0), jnp.ones((3, 5)), Outcome(obs, jnp.ones(3), flags, flags, no_episodes()), obs
    )
    batch = made.sample(jax.random.key(0), ring, jnp.int32(1), jnp.float32(0))
    assert batch.next_obs["a"].shape == (64, 2)
    assert batch.next_obs["b"].dtype == jnp.uint8
    assert (batch.action == 1).all()


def test_uniform_is_uniform() -> None:
    made_for, stream = config(batch_size=40_000), Stream(2, 7, 100, seed=3)
    made = replay.KINDS["uniform"](made_for, 7)
    batch = made.sample(jax.random.key(5), stream.play(made), jnp.int32(100), jnp.float32(0))
    counts = np.bincount(np.asarray(batch.index), minlength=42)
    counts = counts[counts > 0]
    assert counts.size == 40
    chi = ((counts - 1000.0) ** 2 / 1000).sum()
    assert chi < 39 + 4 * np.sqrt(2 * 39)


@pytest.mark.parametrize("size", [40, 3000])
def test_priorities_are_probabilities_and_weights_correct_for_them(size: int) -> None:
    exponent, rows = 0.5, 400
    made_for = config(replay="prioritized", buffer_size=size, batch_size=20_000, priority_exponent=exponent)
    made, stream = replay.KINDS["prioritized"](made_for, 7), Stream(2, 7, rows, seed=3)
    ring = stream.play(made)
    places = np.flatnonzero(np.asarray(ring.priorities.leaves))
    assert places.size == min(size, 2 * rows)
    priority = np.random.default_rng(0).uniform(0.0, 3.0, places.size).astype(np.float32) ** 3 + 1e-6
    ring = jax.jit(made.update)(ring, jnp.asarray(places, jnp.int32), jnp.asarray(priority))
    batch = jax.jit(made.sample)(jax.random.key(2), ring, jnp.int32(rows), jnp.float32(0.5))
    share = priority**exponent / (priority**exponent).sum()
    seen = np.bincount(np.asarray(batch.index), minlength=places.max() + 1)[places] / 20_000
    # Stratified: a count differs from its expectation by less than 2 strata at either end of its interval.
    np.testing.assert_allclose(seen, share, atol=4 / 20_000)
    by_place = dict(zip(places.tolist(), share.tolist(), strict=True))
    beta = 0.5 + 0.5 * 0.5
    weight = np.array([by_place[i] for i in batch.index.tolist()]) ** -beta
    np.testing.assert_allclose(batch.weight, weight / weight.max(), rtol=1e-3)


def test_a_draw_tells_single_transitions_of_a_large_replay_apart() -> None:
    """Four million transitions, every other one worth 0.1 and the rest 1.9: 5 in 100 draws are of the former.

    One float32 for a place among them, up to 2²², has steps of a quarter: 12 in 100 were.
    """
    num_envs, rows, draws = 2**11, 2**11, 2**16
    made_for = config(replay="prioritized", buffer_size=num_envs * rows, batch_size=draws, num_envs=num_envs)
    made = replay.KINDS["prioritized"](made_for, 7)
    ring = made.init(jnp.zeros((num_envs, 1), jnp.int8), jnp.zeros(num_envs, jnp.int8))
    fan = ring.priorities.top.size
    leaves = np.zeros(fan**3, np.float32)
    leaves[: num_envs * rows] = np.where(np.arange(num_envs * rows) % 2, 1.9, 0.1)
    blocks = leaves.reshape(-1, fan).sum(1, dtype=np.float64)
    tree = leaves, blocks, blocks.reshape(-1, fan).sum(1)
    tree = [jnp.asarray(level, jnp.float32) for level in tree]
    ring = ring._replace(priorities=replay.Priorities(*tree, jnp.float32(2)))
    batch = jax.jit(made.sample)(jax.random.key(1), ring, jnp.int32(rows), jnp.float32(0))
    index = np.asarray(batch.index)
    assert index.min() < 1000
    assert index.max() > num_envs * rows - 1000
    assert abs((index % 2 == 0).mean() - 0.05) < 5 * (0.05 * 0.95 / draws) ** 0.5
    assert (np.diff(index) >= 0).all()  # strata, from the first transition to the last


def test_of_a_transition_named_twice_the_larger_priority_counts() -> None:
    made = replay.KINDS["prioritized"](config(), 7)
    ring = Stream(2, 7, 100, seed=3).play(made)
    ring = made.update(ring, jnp.array([7, 7, 7, 8]), jnp.array([1.0, 5.0, 2.0, 0.5]))
    assert float(ring.priorities.leaves[7]) == 5.0
    assert float(ring.priorities.largest) == 5.0
    tree = ring.priorities
    fan = tree.top.size
    np.testing.assert_allclose(tree.blocks, tree.leaves.reshape(-1, fan).sum(1), rtol=1e-6)
    np.testing.assert_allclose(tree.top, tree.blocks.reshape(-1, fan).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"buffer_size": 32, "batch_size": 64}, "buffer_size = 32: must be at least batch_size = 64"),
        ({"num_envs": 100, "learning_starts": 100}, "must hold n_step = 1 steps of num_envs = 100"),
        ({"learning_starts": 1}, "learning_starts = 1: must be at least"),
        ({"n_step": 0}, "n_step"),
        ({"replay": "prioritised"}, "did you mean prioritized"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"discount": 1.5}, "discount"),
        ({"priority_exponent": float("nan")}, "priority_exponent"),
    ],
)
def test_what_does_not_fit_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        replay.make(config(**{"buffer_size": 64, **fields}), world(7))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
@pytest.mark.parametrize("mapping", ["one", "map", "vmap"])
def test_no_step_moves_the_buffer(kind: str, mapping: str) -> None:
    """In a compiled chunk of DQN the loops copy nothing as large as the ring; no write became a scatter."""
    env = envs.make("CartPole-v1")
    settings = dqn.Config(
        num_envs=2, num_steps=4, num_updates=1, batch_size=8, buffer_size=20_002, learning_starts=8,
        replay=kind, hidden_sizes=(8,),
    )  # fmt: skip
    algorithm = dqn.make(env, settings)
    rows = 10_002

    def chunk(key: Any, state: Any, iteration: Any) -> Any:
        def body(_: Any, state: Any) -> Any:
            return algorithm.step(jax.random.fold_in(key, state.iteration), state)[0]

        return jax.lax.fori_loop(0, 3, body, state.replace(iteration=iteration))

    key = jax.random.key(0)
    function, arguments = chunk, (key, jax.eval_shape(algorithm.init, key), jnp.int32(0))
    if mapping != "one":
        keys = jax.random.split(key, 3)
        arguments = (keys, jax.eval_shape(jax.vmap(algorithm.init), keys), jnp.int32(0))
        one = lambda iteration: lambda member: chunk(*member, iteration)
        function = (
            (lambda keys, states, iteration: jax.lax.map(one(iteration), (keys, states)))
            if mapping == "map"
            else jax.vmap(chunk, (0, 0, None))
        )
    text = jax.jit(function, donate_argnums=1).lower(*arguments).compile().as_text()
    moved = [
        line for line in inside_loops(text) if re.search(rf"[\[,]{rows},2[\],]", line.split(" = ")[-1][:40])
    ]
    assert moved, "the shapes of the ring are not what this test looks for"
    for line in moved:
        operation = re.search(r"\} ([a-z\-]+)\(", line)
        assert operation, line
        assert operation[1] not in ("copy", "select", "scatter", "concatenate", "transpose", "convert"), line


def inside_loops(text: str) -> list[str]:
    """The lines of every computation of an HLO module that makes whole arrays, but for the entry, where a
    mapped program may move its buffers once per chunk: the bodies of loops nested at least two deep.
    """
    computations = re.split(r"\n\n", text)
    return [
        line.strip()
        for computation in computations
        if not computation.lstrip().startswith("ENTRY")
        for line in computation.splitlines()
        if "/while/body" in line and line.count("while/body") >= 2
    ]
