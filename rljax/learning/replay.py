"""Experience replay: what N environments did last, as one ring of rows in time, and minibatches from it.

    replay = make(config, env)             two kinds: config.replay = "uniform" or "prioritized"
    ring   = replay.init(obs, action)
    ring   = replay.add(ring, time, action, outcome, obs)
    batch  = replay.sample(key, ring, time, progress)
    ring   = replay.update(ring, batch.index, priority)

Row t holds what all N environments did at time t; the observation that follows it is that of row t + 1 and is
stored once, in its own dtype. Only a truncated episode has a true final observation that no row holds: the
ring keeps those aside, one per environment and row, or where no episode is truncated before the time limit
(`truncates_early` is False) one per environment and time limit, see `_finals`. `time`, the number of rows
written, is no part of the ring: it follows from the iteration, so it is the same for all members of a sweep,
and under `vmap` the writes stay slices instead of becoming scatters.

A sample costs O(batch · n_step) and uniform draws are with replacement, from 32 random bits modulo the number
of transitions: the most and the least probable differ by a relative 2⁻³² · buffer_size. Prioritised draws
(Schaul et al. 2016, arXiv:1511.05952) go down a tree of three levels with about ∛(transitions) branches each,
sums recomputed and never accumulated, so that no rounding drifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.types import Array, Env, Key, PyTree, space_bytes

ONGOING, TRUNCATED, TERMINATED = 0, 1, 2  # how a transition ends its episode
NEVER = 2**30  # steps
MOST_STEPS = 1000  # of an n-step return, whose steps are unrolled in the program


class Ring(NamedTuple):
    """The last R rows of N environments; leaves keep the dtypes of the environment."""

    obs: PyTree  # (R, N, ...) of row t, the row after the newest included
    action: PyTree  # (R, N, ...) raw
    reward: Array  # (R, N)
    end: Array  # (R, N) int8: ONGOING, TRUNCATED or TERMINATED
    final: PyTree  # (F, N, ...) true final observations of truncated episodes
    final_time: Array  # (F, N) int32, the row of each
    priorities: Any  # of the prioritised kind: `Priorities`, else ()


class Priorities(NamedTuple):
    """pᵅ of every transition, in row order, and sums over blocks of them and over blocks of blocks."""

    leaves: Array  # (K³,), zero where no transition may be drawn
    blocks: Array  # (K²,)
    top: Array  # (K,)
    largest: Array  # () so far: what a new transition gets


class Batch(NamedTuple):
    """B transitions of up to n steps."""

    obs: PyTree  # (B, ...) raw
    action: PyTree  # (B, ...) raw
    reward: Array  # (B,) Σ γᵏ r over the n steps, or fewer where the episode ends
    discount: Array  # (B,) of the value that follows: γⁿ, 0 where the episode terminated
    next_obs: PyTree  # (B, ...) the observation to bootstrap from, the true final one of a truncated episode
    weight: Array  # (B,) of each loss
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # (B,) int32, for `update`


class Replay(NamedTuple):
    """One kind of replay as pure functions."""

    init: Callable[[PyTree, PyTree], Ring]  # (observations (N, ...) of row 0, actions (N, ...) as examples)
    add: Callable[..., Ring]  # (ring, time, raw action, outcome, observations of row time + 1)
    sample: Callable[..., Batch]  # (key, ring, time, progress of the run in [0, 1])
    update: Callable[[Ring, Array, Array], Ring]  # (ring, index (B,), new priorities (B,) > 0)


def make(config: Any, env: Env) -> Replay:
    """The replay that `config` describes, for `env`.

    Reads replay, buffer_size (transitions that can be drawn, over all environments, rounded up to whole
    rows), batch_size, n_step, num_envs, discount, learning_starts, and for "prioritized" priority_exponent α
    and importance_exponent β (at the start; it grows linearly to 1).

    Raises: ValueError naming the field that is wrong, or two that do not fit together.
    """
    checks.choice(config, "replay", KINDS)
    checks.count(config, "buffer_size", "batch_size", "num_envs", "learning_starts")
    checks.count(config, "n_step", high=MOST_STEPS)
    checks.number(config, "discount", "priority_exponent", "importance_exponent", low=0, high=1)
    rows = config.num_envs * config.n_step
    if config.buffer_size < config.batch_size:
        checks.complain(config, "buffer_size", f"must be at least batch_size = {config.batch_size}")
    if config.buffer_size < rows:
        right = f"must hold n_step = {config.n_step} steps of num_envs = {config.num_envs} environments"
        checks.complain(config, "buffer_size", right)
    if config.learning_starts < rows:
        right = f"must be at least num_envs x n_step = {rows}, or there is nothing to learn from"
        checks.complain(config, "learning_starts", right)
    if config.buffer_size + 2 * rows > checks.INT32:
        checks.complain(config, "buffer_size", f"must be below {checks.INT32 - 2 * rows}: places are int32")
    checks.fits(config, "buffer_size", config.buffer_size * space_bytes(env.observation_space))
    return KINDS[config.replay](config, _gap(env))


def _gap(env: Env) -> int:
    """How many steps are at least between two truncations of one environment."""
    if env.truncates_early:
        return 1
    return NEVER if env.max_steps is None else env.max_steps


def _uniform(config: Any, gap: int) -> Replay:
    num_envs, n = config.num_envs, config.n_step
    num_rows = -(-config.buffer_size // num_envs) + n

    def sample(key: Key, ring: Ring, time: Array, progress: Array) -> Batch:
        oldest = jnp.maximum(time - num_rows + 1, 0)
        size = ((time - n + 1 - oldest) * num_envs).astype(jnp.uint32)
        drawn = (jax.random.bits(key, (config.batch_size,)) % size).astype(jnp.int32)
        start = oldest + drawn // num_envs
        index = start % num_rows * num_envs + drawn % num_envs
        return _gather(ring, index, time, config, gap)

    return Replay(
        init=lambda obs, action: _empty(obs, action, num_rows, gap, ()),
        add=lambda ring, time, action, outcome, obs: _write(ring, time, action, outcome, obs, gap),
        sample=sample,
        update=lambda ring, index, priority: ring,
    )


def _prioritized(config: Any, gap: int) -> Replay:
    num_envs, n = config.num_envs, config.n_step
    num_rows = -(-config.buffer_size // num_envs) + n
    fan = max(2, math.ceil((num_rows * num_envs) ** (1 / 3)))
    columns = jnp.arange(num_envs, dtype=jnp.int32)

    def init(obs: PyTree, action: PyTree) -> Ring:
        leaves, blocks, top = (jnp.zeros(fan**level, jnp.float32) for level in (3, 2, 1))
        return _empty(obs, action, num_rows, gap, Priorities(leaves, blocks, top, jnp.float32(1)))

    def add(ring: Ring, time: Array, action: PyTree, outcome: Any, obs: PyTree) -> Ring:
        ring = _write(ring, time, action, outcome, obs, gap)
        lost = (time + 1) % num_rows * num_envs + columns  # their first observation was overwritten
        whole = (time + 1 - n) % num_rows * num_envs + columns  # those whose n steps are complete now
        priority = jnp.where(time + 1 < n, 0.0, ring.priorities.largest)
        values = jnp.concatenate([jnp.zeros(num_envs, jnp.float32), jnp.full(num_envs, priority)])
        return ring._replace(
            priorities=_set_priorities(ring.priorities, jnp.concatenate([lost, whole]), values)
        )

    def sample(key: Key, ring: Ring, time: Array, progress: Array) -> Batch:
        tree, total = ring.priorities, ring.priorities.top.sum()
        spread = jax.random.uniform(key, (config.batch_size,), jnp.float32)
        width = total / config.batch_size
        strata = jnp.arange(config.batch_size, dtype=jnp.float32) * width
        top = jnp.broadcast_to(tree.top[None], (config.batch_size, fan))
        block, rest = _descend(top, strata, spread * width)
        inner, rest = _descend(tree.blocks.reshape(-1, fan)[block], rest, jnp.zeros_like(rest))
        block = block * fan + inner
        inner, _ = _descend(tree.leaves.reshape(-1, fan)[block], rest, jnp.zeros_like(rest))
        index = block * fan + inner
        batch = _gather(ring, index, time, config, gap)
        exponent = config.importance_exponent + (1 - config.importance_exponent) * jnp.clip(progress, 0, 1)
        rarity = (tree.leaves[index] / total) ** -exponent
        return batch._replace(weight=batch.weight * rarity / rarity.max())

    def update(ring: Ring, index: Array, priority: Array) -> Ring:
        values = priority**config.priority_exponent
        tree = _set_priorities(ring.priorities, index, values)
        return ring._replace(priorities=tree._replace(largest=jnp.maximum(tree.largest, values.max())))

    return Replay(init, add, sample, update)


KINDS: dict[str, Callable[[Any, int], Replay]] = {"uniform": _uniform, "prioritized": _prioritized}


def _finals(num_rows: int, gap: int) -> int:
    """How many true final observations an environment can have in the ring: one per bucket of `gap` rows.

    Two truncations of one environment are at least `gap` steps apart, so they never share a bucket. Where an
    environment says that it does not truncate early and does, the later one wins, and `_gather` gives the
    transition that lost its final observation the weight 0 instead of a wrong target.
    """
    return (num_rows - 1) // gap + 2


def _empty(obs: PyTree, action: PyTree, num_rows: int, gap: int, priorities: Any) -> Ring:
    finals = _finals(num_rows, gap)
    zeros = lambda tree, rows: jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), tree)
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    return Ring(
        obs=jax.tree.map(lambda ring, row: ring.at[0].set(row), zeros(obs, num_rows), obs),
        action=zeros(action, num_rows),
        reward=jnp.zeros((num_rows, num_envs), jnp.float32),
        end=jnp.zeros((num_rows, num_envs), jnp.int8),
        final=zeros(obs, finals),
        final_time=jnp.full((finals, num_envs), -1, jnp.int32),
        priorities=priorities,
    )


def _write(ring: Ring, time: Array, action: PyTree, outcome: Any, obs: PyTree, gap: int) -> Ring:
    num_rows, row = ring.reward.shape[0], time % ring.reward.shape[0]
    put = lambda tree, new, at: jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), at, 0),
        tree,
        new,
    )
    end = jnp.where(outcome.terminated, TERMINATED, jnp.where(outcome.truncated, TRUNCATED, ONGOING))
    slot, cut = time // gap % ring.final_time.shape[0], end == TRUNCATED

    def keep(whole: Array, new: Array) -> Array:
        """`new` (N, ...) where an episode was truncated, else what stands in the slot."""
        old = jax.lax.dynamic_index_in_dim(whole, slot, 0, keepdims=False)
        return jnp.where(cut.reshape(cut.shape + (1,) * (old.ndim - 1)), new.astype(whole.dtype), old)

    return Ring(
        obs=put(ring.obs, obs, (time + 1) % num_rows),
        action=put(ring.action, action, row),
        reward=put(ring.reward, outcome.reward, row),
        end=put(ring.end, end, row),
        final=put(ring.final, jax.tree.map(keep, ring.final, outcome.obs), slot),
        final_time=put(ring.final_time, keep(ring.final_time, jnp.full_like(end, time, jnp.int32)), slot),
        priorities=ring.priorities,
    )


def _gather(ring: Ring, index: Array, time: Array, config: Any, gap: int) -> Batch:
    """The transitions that start at these places of the flattened ring, index = row · N + environment."""
    num_rows, num_envs = ring.reward.shape
    row, column = index // num_envs, index % num_envs
    take = lambda tree, rows: jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[rows * num_envs + column], tree
    )
    start = time - 1 - (time - 1 - row) % num_rows  # the time at which the row was written
    reward, stop = jnp.zeros(index.shape, jnp.float32), start
    discount, going = jnp.ones(index.shape, jnp.float32), jnp.ones(index.shape, bool)
    end = jnp.zeros(index.shape, jnp.int8)
    for step in range(config.n_step):
        at = (row + step) % num_rows
        reward += jnp.where(going, discount * take(ring.reward, at), 0.0)
        discount = jnp.where(going, discount * config.discount, discount)
        end, stop = jnp.where(going, take(ring.end, at), end), jnp.where(going, start + step, stop)
        going &= end == ONGOING
    slot = stop // gap % ring.final_time.shape[0]
    cut = end == TRUNCATED
    choose = lambda final, following: jnp.where(
        cut.reshape(cut.shape + (1,) * (final.ndim - 1)), final, following
    )
    return Batch(
        obs=take(ring.obs, row),
        action=take(ring.action, row),
        reward=reward,
        discount=jnp.where(end == TERMINATED, 0.0, discount),
        next_obs=jax.tree.map(
            choose, take(ring.final, slot), take(ring.obs, (row + config.n_step) % num_rows)
        ),
        weight=1.0 - (cut & (take(ring.final_time, slot) != stop)).astype(jnp.float32),
        index=index,
    )


def _set_priorities(tree: Priorities, index: Array, values: Array) -> Priorities:
    """Of a transition named more than once the largest value counts, in any order of the writes."""
    fan = tree.top.shape[0]
    leaves = tree.leaves.at[index].set(0.0).at[index].max(values)
    block = index // fan
    blocks = tree.blocks.at[block].set(leaves.reshape(-1, fan)[block].sum(axis=-1))
    return tree._replace(leaves=leaves, blocks=blocks, top=blocks.reshape(-1, fan).sum(axis=-1))


def _descend(weights: Array, start: Array, offset: Array) -> tuple[Array, Array]:
    """Per row of weights (B, K): the first entry whose cumulative sum exceeds start + offset, both (B,), and
    what is left there.

    They are two numbers because their sum would be rounded: of a million transitions of priority 1 to a
    sixteenth of one of them, of ten million to a whole one. Never an entry of weight 0, which rounding alone
    could reach.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    entry = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    last = jnp.max(jnp.where(weights > 0, entry, 0), axis=-1, keepdims=True)
    exceeds = cumulative - start[:, None] > offset[:, None]
    chosen = jnp.min(jnp.where((weights > 0) & exceeds, entry, last), axis=-1)
    before = jnp.max(jnp.where(entry < chosen[:, None], cumulative, 0.0), axis=-1)
    return chosen, (start - before) + offset
