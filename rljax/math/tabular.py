"""Finite Markov decision processes solved exactly: Bellman operators, values of policies, optimal ones.

An MDP is three arrays: transition P (S, A, S) with P[s, a, s'] the probability of s' after action a in s,
reward r (S, A) expected of that step, and discount γ. Rows of P may sum to less than 1: the rest ends the
episode, and nothing follows. Policies are (S, A), rows of probabilities; a value v is (S,), action values q
are (S, A), all in the unit of the reward. The operators with γ < 1 are contractions in the maximum norm;
γ = 1 is allowed where the episode ends under the policies in question (stochastic shortest paths).

Sources: Puterman, Markov Decision Processes, 1994; Sutton & Barto, Reinforcement Learning, 2018, chapters 3
and 4. Everything is for one MDP: map over MDPs with `vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def action_values(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    value: Float[Array, "S"],
) -> Float[Array, "S A"]:
    """q(s, a) = r(s, a) + γ Σ P(s' | s, a) v(s'): one step of a, then v (Sutton & Barto 2018, eq. 4.6)."""
    return reward + discount * (transition @ value)


def expectation_backup(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    policy: Float[Array, "S A"],
    value: Float[Array, "S"],
) -> Float[Array, "S"]:
    """(T_π v)(s) = Σ π(a | s) q(s, a) (eq. 4.5); its fixed point is v_π."""
    return (policy * action_values(transition, reward, discount, value)).sum(-1)


def optimality_backup(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    value: Float[Array, "S"],
) -> Float[Array, "S"]:
    """(T v)(s) = maxₐ q(s, a) (eq. 4.10); its fixed point is v*."""
    return action_values(transition, reward, discount, value).max(-1)


def greedy_policy(action_value: Float[Array, "S A"]) -> Float[Array, "S A"]:
    """Probability 1 on the action of the highest value, the lowest index among equals."""
    return jax.nn.one_hot(action_value.argmax(-1), action_value.shape[-1], dtype=action_value.dtype)


def epsilon_greedy_policy(
    action_value: Float[Array, "*B A"], epsilon: float | Float[Array, ""]
) -> Float[Array, "*B A"]:
    """(1 − ε) spread over the actions of the highest value, all of them alike, and ε over all actions."""
    best = (action_value == action_value.max(-1, keepdims=True)).astype(action_value.dtype)
    return (1 - epsilon) * best / best.sum(-1, keepdims=True) + epsilon / action_value.shape[-1]


def policy_value(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    policy: Float[Array, "S A"],
) -> Float[Array, "S"]:
    """v_π, the solution of (I − γ P_π) v = r_π: exact up to rounding, in O(S³).

    With γ = 1 the policy must end every episode, else the matrix is singular and the result NaN or infinite.
    Differentiable in everything, the policy included. Under `vmap` one MDP is solved after the other.
    """
    moves, step_reward = _under(transition, policy), (policy * reward).sum(-1)
    return _solve(jnp.eye(moves.shape[0], dtype=moves.dtype) - discount * moves, step_reward)


def occupancy(
    transition: Float[Array, "S A S"],
    start: Float[Array, "S"],
    discount: float | Float[Array, ""],
    policy: Float[Array, "S A"],
) -> Float[Array, "S"]:
    """d(s) = Σₜ γᵗ Pr(sₜ = s), discounted visits to s in an episode that begins in `start` (S,).

    The transposed system of `policy_value` (Puterman 1994, sec. 6.9), so that Σ d(s) r_π(s) = Σ start(s)
    v_π(s). It sums to 1/(1 − γ) where no episode ends, to the mean length of an episode for γ = 1.
    """
    moves = _under(transition, policy)
    return _solve((jnp.eye(moves.shape[0], dtype=moves.dtype) - discount * moves).T, start)


class Solution(NamedTuple):
    """What solves an MDP, and how it was found."""

    value: Float[Array, "S"]  # v*
    policy: Float[Array, "S A"]  # an optimal policy
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def value_iteration(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    tolerance: float = 1e-6,
    max_iterations: int = 100_000,
) -> Solution:
    """v ← T v from v = 0 until no state changes by more than `tolerance` · max(1, max |v|).

    Then |v − v*| is at most γ/(1 − γ) times that. The tolerance is relative above 1, because rounding in
    float32 leaves about 1e-7 of the largest value. The policy is greedy, ties to the lowest index; with γ = 1
    such a policy may walk in circles of reward 0, where `policy_iteration` gives one that does not. A
    `while_loop`: jittable; under `vmap` all members run until the last has converged.
    """

    def unfinished(carry: tuple) -> Array:
        return (carry[2] > tolerance) & (carry[1] < max_iterations)

    def back_up(carry: tuple) -> tuple:
        value, iteration, _ = carry
        following = optimality_backup(transition, reward, discount, value)
        return following, iteration + 1, _relative_change(following, value)

    start = (jnp.zeros_like(reward[:, 0]), jnp.int32(0), jnp.full((), jnp.inf, reward.dtype))
    value, iterations, change = jax.lax.while_loop(unfinished, back_up, start)
    policy = greedy_policy(action_values(transition, reward, discount, value))
    return Solution(value, policy, iterations, change <= tolerance)


def policy_iteration(
    transition: Float[Array, "S A S"],
    reward: Float[Array, "S A"],
    discount: float | Float[Array, ""],
    tolerance: float = 1e-5,
    max_iterations: int = 1_000,
) -> Solution:
    """Evaluate exactly, improve every state that can be improved, until none can (Howard 1960).

    A state keeps its row of the policy unless an action is better by more than `tolerance` · max(1, max |v|),
    so that rounding cannot turn equals round for ever: it terminates, usually within a dozen iterations, with
    |v − v*| at most that over 1 − γ. The first policy is uniformly random. With γ = 1 it must end every
    episode, and then all policies that follow do, because a circle that gains nothing is not an improvement.
    So the policy found is deterministic except in states where the first one was already as good.
    """

    def unfinished(carry: tuple) -> Array:
        return carry[3] & (carry[2] < max_iterations)

    def improve(carry: tuple) -> tuple:
        policy, _, iteration, _ = carry
        value = policy_value(transition, reward, discount, policy)
        q = action_values(transition, reward, discount, value)
        margin = tolerance * jnp.maximum(1.0, jnp.abs(value).max())
        better = q.max(-1) > (policy * q).sum(-1) + margin
        policy = jnp.where(better[:, None], greedy_policy(q), policy)
        return policy, value, iteration + 1, better.any()

    first = jnp.full_like(reward, 1.0 / reward.shape[1])
    start = (first, jnp.zeros_like(reward[:, 0]), jnp.int32(0), jnp.bool_(True))
    policy, value, iterations, improved = jax.lax.while_loop(unfinished, improve, start)
    return Solution(value, policy, iterations, ~improved)


def _under(transition: Array, policy: Array) -> Array:
    """P_π (S, S), where the policy leads in one step."""
    return jnp.einsum("sa,sat->st", policy, transition)


def _relative_change(new: Array, old: Array) -> Array:
    return jnp.abs(new - old).max() / jnp.maximum(1.0, jnp.abs(new).max())


@jax.custom_batching.sequential_vmap
def _lapack(matrix: Array, right: Array) -> Array:
    """Never a batched LU: several LAPACK calls of one program can wait for each other for ever on a CPU, see
    `rljax.models.layers`. Under `vmap` they run one after the other.
    """
    return jnp.linalg.solve(matrix, right)


def _solve(matrix: Array, right: Array) -> Array:
    """x with matrix x = right, differentiable in both."""
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        right,
        solve=lambda _, b: _lapack(matrix, b),
        transpose_solve=lambda _, b: _lapack(matrix.T, b),
    )
