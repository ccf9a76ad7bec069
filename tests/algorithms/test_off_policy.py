"""What methods with a replay share: the clock of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rljax
from rljax.algorithms import ddpg, dqn, sac
from rljax.learning import deep_q_learning, off_policy
from rljax.math import schedules

LATE: dict[str, Any] = {"total_steps": 30_000, "learning_starts": 20_000, "num_envs": 4, "num_steps": 25}


@pytest.mark.parametrize("module", [dqn, ddpg, sac])
def test_a_linear_rate_reaches_0_at_the_end_of_a_run_with_a_long_warm_up(module: Any) -> None:
    """20,000 of 30,000 steps are behind when learning begins, 100 more after each of 100 iterations."""
    config = module.Config(**LATE)
    behind = jax.vmap(lambda i: off_policy.progress(config, i))(jnp.arange(101))
    np.testing.assert_allclose(behind, (20_000 + 100 * np.arange(101)) / 30_000, rtol=1e-6)
    factor = jax.vmap(lambda x: schedules.factor("linear", x))(behind)
    np.testing.assert_allclose(factor[jnp.array([0, 50, 100])], [1 / 3, 1 / 6, 0], atol=1e-6)


def test_the_rate_of_an_update_is_on_the_clock_of_epsilon() -> None:
    config = dqn.Config(**LATE, learning_rate=0.6, target_every=1, epsilon_end=0.0, exploration_fraction=1.0)
    learner = jnp.float32(3), jnp.float32(3), optax.EmptyState()
    loss = lambda x: (2 * x, (x[None], x[None]))
    update = lambda iteration: deep_q_learning.update(
        loss, optax.identity(), learner, jnp.int32(0), jnp.int32(iteration), config
    )[0][0]
    np.testing.assert_allclose([update(0), update(50)], [3 - 0.6 / 3 * 2, 3 - 0.6 / 6 * 2], rtol=1e-6)
    q = lambda params, obs: jnp.broadcast_to(jnp.arange(2.0)[None], (obs.shape[0], 2))
    act = deep_q_learning.acting(q, lambda action: action, config)
    begun = off_policy.progress(config, jnp.int32(0))
    action, *_ = act(jax.random.key(0), (None,), jnp.zeros((20_000, 1)), (), begun)
    assert float((action == 0).mean()) == pytest.approx(1 / 3 / 2, abs=0.02)  # ε is 1/3 too, of two actions


def test_the_speed_of_a_run_counts_what_its_seconds_do() -> None:
    config = {
        "learning_starts": 6_400,
        "num_envs": 64,
        "num_steps": 16,
        "batch_size": 8,
        "buffer_size": 6_400,
    }
    done = rljax.train("dqn", "ValueConstant-probe", config, steps=8_448, progress=False)
    seconds = done.rows[-1]["seconds"]
    assert done.summary["steps"] == 8_448
    assert 2_048 / done.summary["steps_per_second"] == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("module", [dqn, ddpg, sac])
def test_a_warm_up_of_whole_rows_that_leaves_nothing_is_refused(module: Any) -> None:
    """1,000 steps of 64 environments are 16 rows, 1,024 steps: more than the run has."""
    config = module.Config(total_steps=1_001, learning_starts=1_000, num_envs=64)
    right = (
        r"learning_starts = 1000: fills 1024 steps, whole rows of num_envs: must leave some of total_steps"
    )
    with pytest.raises(ValueError, match=right):
        off_policy.check(config)
    off_policy.check(config.replace(total_steps=1_025))
