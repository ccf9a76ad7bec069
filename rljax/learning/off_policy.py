"""What every method with a replay does around its update: fill the replay, then act and learn in turn.

An iteration is a static number of rows (steps of all N environments); after every `train_every` of them come
`num_updates` updates, each with a minibatch of its own. The warm-up is a scan of its own, before the first
iteration, so that no `cond` decides in every step whether to learn yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rljax import checks
from rljax.learning import env_rollouts
from rljax.learning.env_rollouts import Episodes, Worlds
from rljax.learning.replay import Replay, Ring
from rljax.math import action_values
from rljax.types import Array, Env, Key, PyTree


class Cycle(NamedTuple):
    """What one iteration leaves behind."""

    worlds: Worlds
    ring: Ring
    learner: PyTree
    noise: PyTree
    obs: PyTree  # (T, N, ...) raw observations acted on, for a normaliser
    episodes: Episodes  # that ended
    measures: Array  # (updates, M) what `learn` measured


def check(config: Any) -> None:
    """The fields of `config` that this file reads. ValueError naming the one that is wrong."""
    checks.number(config, "total_steps", low=0, open_low=True)
    checks.count(config, "num_envs", "num_steps", "train_every", "num_updates", "learning_starts")
    if config.num_steps % config.train_every:
        checks.complain(config, "train_every", f"must divide num_steps = {config.num_steps}")
    checks.product(config, "num_envs", "num_steps")
    checks.product(config, "num_steps", "num_updates")
    total = config.total_steps
    if isinstance(total, Tracer):
        return
    if total <= config.learning_starts:
        right = f"must be below total_steps = {checks.show(total)}, or nothing is ever learnt"
        checks.complain(config, "learning_starts", right)
    if total <= config.initial_steps:
        right = f"fills {config.initial_steps} steps, whole rows of num_envs: must leave some of total_steps"
        checks.complain(config, "learning_starts", f"{right} = {checks.show(total)}")
    rounds = total / config.num_envs / config.train_every
    if max(config.train_every, config.num_updates) * rounds > checks.INT32:
        checks.complain(config, "total_steps", f"is more than {checks.INT32} rows or updates: take less")


def follow(params: PyTree, target: PyTree, update: Array, config: Any) -> PyTree:
    """The target network after the update of this number: every `target_every` updates it moves by
    `target_rate` of the way to `params` (Polyak averaging; a copy where that is 1).
    """
    moved = move(params, target, config.target_rate)
    if config.target_every == 1:
        return moved
    due = (update + 1) % config.target_every == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, target)


def move(params: PyTree, target: PyTree, rate: float | Array) -> PyTree:
    """The target network, moved by `rate` of the way to `params` (Polyak averaging)."""
    return jax.tree.map(lambda p, t: t + rate * (p - t), params, target)


def progress(config: Any, iteration: Array) -> Array:
    """How much of the run is behind at the start of an iteration, warm-up included: in [0, 1), and at least 1
    after the last. The clock of ε, β and the learning rates.
    """
    each = config.steps_per_iteration / config.total_steps
    return jnp.asarray(config.initial_steps / config.total_steps + iteration * each, jnp.float32)


def _progress_at(config: Any, time: Array) -> Array:
    """`progress` where `time` rows are behind."""
    return jnp.asarray(time * (config.num_envs / config.total_steps), jnp.float32)


def random_choices(
    config: Any, num_actions: int, values: Callable[[PyTree], Array] | None = None
) -> Callable[[Key, PyTree], Array]:
    """A function of a key and observations (N, ...) to actions (N,), all equally probable.

    `values` are those of a network of the user's own, observations (N, ...) -> (N, A), to which an action may
    be forbidden: −∞.
    """

    def choose(key: Key, obs: PyTree) -> Array:
        if values is None:
            return jax.random.randint(key, (config.num_envs,), 0, num_actions)
        return action_values.epsilon_greedy(key, values(obs), 1.0)

    return choose


def random_moves(config: Any, size: int) -> Callable[[Key, PyTree], Array]:
    """A function of a key and observations (N, ...) to raw actions (N, D), uniform in [−1, 1]."""
    shape = config.num_envs, size
    return lambda key, obs: jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0)


def warm_up(
    env: Env,
    replay: Replay,
    explore: Callable[[Key, PyTree], Array],
    to_env: Callable[[Array], Array],
    key: Key,
    worlds: Worlds,
    config: Any,
) -> tuple[Worlds, Ring, PyTree]:
    """Fill the replay with ⌈learning_starts / N⌉ rows.

    Args:
        explore: (key, observations (N, ...)) -> random raw actions (N, ...).
        to_env: (raw actions) -> actions that the environment takes.

    Returns: the environments afterwards, the ring, and the observations acted on, (T, N, ...).
    """

    def act(key: Key, learner: tuple, obs: PyTree, noise: tuple, progress: Array) -> tuple:
        raw = explore(key, obs)
        return raw, to_env(raw), noise

    example = jax.eval_shape(explore, key, worlds.obs)
    zeros = jnp.zeros(example.shape, example.dtype)
    pool_key, fill_key, steps_key = jax.random.split(key, 3)
    num_rows = config.initial_steps // config.num_envs
    carry = (
        worlds,
        env_rollouts.starts(env, pool_key, fill_key, config.num_envs, num_rows),
        replay.init(worlds.obs, zeros),
        (),
        env_rollouts.no_episodes(),
    )
    times = jnp.arange(num_rows, dtype=jnp.int32)
    (worlds, _, ring, _, _), obs = jax.lax.scan(
        lambda carry, inputs: _interact(env, replay, act, (), config, carry, inputs),
        carry,
        (jax.random.split(steps_key, (num_rows, 2)), times),
    )
    return worlds, ring, obs


def cycle(
    env: Env,
    replay: Replay,
    act: Callable[..., tuple[PyTree, PyTree, PyTree]],
    learn: Callable[..., tuple[PyTree, Array, Array]],
    key: Key,
    worlds: Worlds,
    ring: Ring,
    learner: PyTree,
    noise: PyTree,
    iteration: Array,
    config: Any,
) -> Cycle:
    """One iteration: num_steps rows, with num_updates updates after every train_every of them.

    Args:
        act: (key, learner, observations (N, ...), noise, progress) -> (raw actions (N, ...), actions that
            the environment takes, noise). `noise` (N, ...) is set to zero where an episode ended.
        learn: (key, learner, minibatch, update) -> (learner, priorities (B,), measures (M,)), where `update`
            counts updates from 0 over the whole run and is the same for all members of a sweep.
        worlds, ring, learner, noise: as the iteration before left them.
    """
    num_rounds = config.num_steps // config.train_every
    pool_key, fill_key, act_key, learn_key = jax.random.split(key, 4)
    first_row = config.initial_steps // config.num_envs + iteration * config.num_steps
    first_update = iteration * (num_rounds * config.num_updates)

    def update(carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        ring, learner = carry
        (sample_key, update_key), count, time = inputs
        progress = _progress_at(config, time)
        batch = replay.sample(sample_key, ring, time, progress)
        learner, priority, measures = learn(update_key, learner, batch, count)
        return (replay.update(ring, batch.index, priority), learner), measures

    def turn(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        outer, learner = carry
        act_keys, times, update_keys, counts = inputs
        outer, obs = jax.lax.scan(
            lambda carry, inputs: _interact(env, replay, act, learner, config, carry, inputs),
            outer,
            (act_keys, times),
        )
        worlds, pool, ring, noise, episodes = outer
        now = jnp.broadcast_to(times[-1] + 1, counts.shape)
        (ring, learner), measures = jax.lax.scan(update, (ring, learner), (update_keys, counts, now))
        return ((worlds, pool, ring, noise, episodes), learner), (obs, measures)

    shape, updates = (num_rounds, config.train_every), (num_rounds, config.num_updates)
    inputs = (
        jax.random.split(act_key, (*shape, 2)),
        first_row + jnp.arange(config.num_steps, dtype=jnp.int32).reshape(shape),
        jax.random.split(learn_key, (*updates, 2)),
        first_update + jnp.arange(num_rounds * config.num_updates, dtype=jnp.int32).reshape(updates),
    )
    pool = env_rollouts.starts(env, pool_key, fill_key, config.num_envs, config.num_steps)
    outer = (worlds, pool, ring, noise, env_rollouts.no_episodes())
    (outer, learner), (obs, measures) = jax.lax.scan(turn, (outer, learner), inputs)
    worlds, _, ring, noise, episodes = outer
    obs = jax.tree.map(lambda x: x.reshape(config.num_steps, *x.shape[2:]), obs)
    return Cycle(worlds, ring, learner, noise, obs, episodes, measures.reshape(-1, measures.shape[-1]))


def after(state: Any, done: Cycle, observe: Any) -> Any:
    """The State after an iteration; `done.learner` is (params, target_params, opt_state)."""
    params, target_params, opt_state = done.learner
    return state.replace(
        params=params,
        target_params=target_params,
        opt_state=opt_state,
        worlds=done.worlds,
        ring=done.ring,
        normalizer=observe.update(state.normalizer, done.obs),
        iteration=state.iteration + 1,
    )


def _interact(
    env: Env,
    replay: Replay,
    act: Callable[..., tuple[PyTree, PyTree, PyTree]],
    learner: PyTree,
    config: Any,
    carry: tuple,
    inputs: tuple,
) -> tuple[tuple, PyTree]:
    """One row: act, step every environment, remember."""
    worlds, pool, ring, noise, episodes = carry
    (act_key, env_key), time = inputs
    progress = _progress_at(config, time)
    raw, action, noise = act(act_key, learner, worlds.obs, noise, progress)
    following, pool, outcome = env_rollouts.step(env, env_key, worlds, pool, action)
    ring = replay.add(ring, time, raw, outcome, following.obs)
    done = outcome.terminated | outcome.truncated
    rest = lambda x: jnp.where(done.reshape(done.shape + (1,) * (x.ndim - 1)), 0.0, x)
    episodes = jax.tree.map(jnp.add, episodes, outcome.episodes)
    return (following, pool, ring, jax.tree.map(rest, noise), episodes), worlds.obs
