"""A cycle in its parts, of one member: for rewards that live on the host, and for people to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.types import Algorithm, Array, Key, Mean, PyTree, Scores, Split, Task

INSPECTION = 2**31 - 2  # folded into the run key where training folds an iteration


class Parts(NamedTuple):
    """Functions (shared, swept fields, key, state, ...) of one member. `shared` is (Config, frozen arrays, a
    number, retry, iteration).
    """

    sample: Callable[..., tuple[PyTree, Scores]]
    learn: Callable[
        ..., tuple[PyTree, PyTree, Array]
    ]  # (..., rollout, Scores) -> state, metrics, whether sound
    show: Callable[..., tuple[PyTree, Scores]]  # a rollout of other keys than training's
    advantage: Callable[..., Array]  # (..., rollout, Scores)
    greedy: Callable[..., tuple[PyTree, Scores]]  # (count, ...) of held-out prompts


def iteration_key(run_key: Key, iteration: Array, retry: Array | int) -> Key:
    """The key of one cycle; a rollback after NaN raises `retry`."""
    return jax.random.fold_in(jax.random.fold_in(run_key, iteration), retry)


@jax.jit
def member_keys(seeds: Array) -> tuple[Key, Key]:
    """The keys of `init` and of training, each (S,), of S seeds."""
    pairs = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    return pairs[:, 0], pairs[:, 1]


def means(metrics: PyTree) -> list[Mean]:
    return jax.tree.leaves(metrics, is_leaf=lambda x: isinstance(x, Mean))


def sound(state: PyTree, metrics: PyTree) -> Array:
    """Whether every metric is a finite number, and no parameter or other number that the State carries over
    to another run is NaN, ().

    A parameter may be infinite: a logit of −∞ forbids its action.
    """
    numbers = [
        leaf
        for field in (dataclasses.fields(state) if dataclasses.is_dataclass(state) else ())
        if "carried" in field.metadata
        for leaf in jax.tree.leaves(getattr(state, field.name))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    fine = [jnp.isfinite(mean.total) for mean in means(metrics)] + [~jnp.isnan(x).any() for x in numbers]
    return jnp.stack(fine).all()


def parts(algorithm: Callable[[tuple, dict], Algorithm]) -> Parts:
    """The parts of what `algorithm(shared, swept fields)` builds, if it has a split."""

    def built(shared: tuple, varied: dict, state: Any) -> tuple[Split, Any]:
        split = algorithm(shared, varied).split
        assert split is not None, "an algorithm that is rewarded for text has its parts"
        return split, state.replace(iteration=shared[4])

    def scored(split: Split, rollout: PyTree) -> tuple[PyTree, Scores]:
        return rollout, split.reward(rollout)

    def keys(shared: tuple, key: Key, state: Any) -> Array:
        return jax.random.split(iteration_key(key, state.iteration, shared[3]))

    def sample(shared: tuple, varied: dict, key: Key, state: Any) -> tuple[PyTree, Scores]:
        split, state = built(shared, varied, state)
        return scored(split, split.sample(keys(shared, key, state)[0], state))

    def learn(
        shared: tuple, varied: dict, key: Key, state: Any, rollout: PyTree, scores: Scores
    ) -> tuple[PyTree, PyTree, Array]:
        split, state = built(shared, varied, state)
        state, metrics = split.learn(keys(shared, key, state)[1], state, rollout, scores)
        return state, metrics, sound(state, metrics)

    def show(shared: tuple, varied: dict, key: Key, state: Any) -> tuple[PyTree, Scores]:
        split, state = built(shared, varied, state)
        key = jax.random.fold_in(jax.random.fold_in(key, INSPECTION), shared[2])
        return scored(split, split.sample(key, state))

    def advantage(
        shared: tuple, varied: dict, key: Key, state: Any, rollout: PyTree, scores: Scores
    ) -> Array:
        del key
        split, state = built(shared, varied, state)
        return split.advantage(state, rollout, scores)

    def greedy(count: int, shared: tuple, varied: dict, key: Key, state: Any) -> tuple[PyTree, Scores]:
        del key
        split, state = built(shared, varied, state)
        return scored(split, split.greedy(state, count))

    return Parts(sample, learn, show, advantage, greedy)


def on_host(world: Any) -> Callable[[PyTree, Scores], Scores] | None:
    """What fills in the rewards of a task that live on the host: (rollout, Scores) of S members, numpy, to
    Scores; None where there are none.
    """
    if not (isinstance(world, Task) and any(reward.host for reward in world.rewards)):
        return None
    from rljax.text import rewards

    def fill(rollout: Any, scores: Scores) -> Scores:
        members, number = scores.values.shape[:2]
        flat = lambda x: x.reshape(members * number, *x.shape[2:])
        prompt = flat(np.where(rollout.valid, rollout.prompt, -1))
        completion = flat(np.where(rollout.mask, rollout.completion, -1))
        rows = flat(rollout.reference["row"])
        found = rewards.on_host(world, prompt, completion, rows, jax.tree.map(flat, scores))
        return jax.tree.map(lambda x, like: np.asarray(x).reshape(like.shape), found, scores)

    return fill


def judged(world: Task, rollout: Any, scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards (S, E), lengths (S, E) and whether they could be scored, of greedy rollouts of S members."""
    from rljax.learning.completions import combined

    members = [jax.tree.map(lambda x: x[member], scores) for member in range(len(scores.values))]  # noqa: B023
    reward = np.stack([np.asarray(combined(world, each)) for each in members])
    return reward, rollout.mask.sum(axis=2).astype(np.float32), np.isfinite(reward)
