"""rlax and distrax as oracles; `pip install -e '.[parity]'` brings them."""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math import distributions, losses, returns
from tests.math import references as ref

with warnings.catch_warnings():  # their imports warn; what they compute is what counts here
    warnings.simplefilter("ignore")
    rlax = pytest.importorskip("rlax", exc_type=ImportError)
    distrax = pytest.importorskip("distrax", exc_type=ImportError)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
GAMMA, LAMBDA = 0.97, 0.9


@pytest.fixture(autouse=True)
def their_promotions() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def steps() -> ref.Trajectory:
    """Terminations only: with one value per step rlax cannot tell a truncated end from the next start."""
    steps = ref.trajectory(0, 50)
    ends = steps.terminated | steps.truncated
    value = np.append(steps.value, steps.next_value[-1])
    steps = steps._replace(terminated=ends, truncated=np.zeros(50, bool), next_value=value[1:])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if leaf.dtype == bool else jnp.float32(leaf), steps)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_returns(steps: ref.Trajectory) -> None:
    discount, trace = jnp.float32(steps.discount(GAMMA)), jnp.full(50, LAMBDA)
    ones = jnp.ones(50)
    arguments = steps.reward, discount, steps.next_value
    last = steps.next_value[-1]
    close(returns.discounted_returns(*arguments[:2], last), rlax.discounted_returns(*arguments[:2], last))
    close(returns.lambda_returns(*arguments, trace), rlax.lambda_returns(*arguments, LAMBDA))
    for n in (1, 3, 10):
        close(returns.n_step_returns(*arguments, ones, n), rlax.n_step_bootstrapped_returns(*arguments, n))
    values = jnp.append(steps.value, last)
    theirs = rlax.truncated_generalized_advantage_estimation(steps.reward, discount, LAMBDA, values)
    close(returns.gae(steps.reward, discount, steps.value, steps.next_value, trace), theirs)


@pytest.mark.parametrize("clip_rho", [1.0, 3.0])
def test_vtrace(steps: ref.Trajectory, clip_rho: float) -> None:
    discount, trace = jnp.float32(steps.discount(GAMMA)), jnp.full(50, LAMBDA)
    ours = returns.vtrace(
        steps.reward, discount, steps.value, steps.next_value, trace, steps.ratio, clip_rho, 1.0
    )
    theirs = rlax.vtrace_td_error_and_advantage(
        steps.value, steps.next_value, steps.reward, discount, steps.ratio, LAMBDA, clip_rho, clip_rho
    )
    close(ours.target - steps.value, theirs.errors)
    close(ours.advantage, theirs.pg_advantage)


def test_surrogate(steps: ref.Trajectory) -> None:
    ours = losses.clipped_surrogate(jnp.log(steps.ratio), jnp.zeros(50), steps.reward, 0.2)
    close(ours.mean(), rlax.clipped_surrogate_pg_loss(steps.ratio, steps.reward, 0.2))


def test_distributions() -> None:
    key = jax.random.key(0)
    logits, other = jax.random.normal(key, (2, 6, 4))
    action = jnp.array([0, 1, 2, 3, 0, 1])
    theirs, theirs_q = distrax.Categorical(logits=logits), distrax.Categorical(logits=other)
    close(distributions.categorical.log_prob(logits, action), theirs.log_prob(action))
    close(distributions.categorical.entropy(logits), theirs.entropy())
    close(distributions.categorical.kl(logits, other), theirs.kl_divergence(theirs_q))

    p, q = (logits, other[0] * 0.3), (other, logits[0] * 0.3)
    theirs, theirs_q = (distrax.MultivariateNormalDiag(m, jnp.exp(s) * jnp.ones_like(m)) for m, s in (p, q))
    u = jax.random.normal(key, (6, 4))
    close(distributions.diagonal_gaussian.log_prob(p, u), theirs.log_prob(u))
    close(distributions.diagonal_gaussian.entropy(p), theirs.entropy())
    close(distributions.diagonal_gaussian.kl(p, q), theirs.kl_divergence(theirs_q))
    squashed = distrax.Transformed(theirs, distrax.Block(distrax.Tanh(), 1))
    close(distributions.tanh_gaussian.log_prob(p, u), squashed.log_prob(distributions.squash(u)))
