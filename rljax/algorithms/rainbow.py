"""Rainbow (Hessel et al. 2018, arXiv:1710.02298), for discrete actions: `c51` with double DQN's choice of the
next action, a dueling head, n-step targets and prioritised replay.

    m = Φ(R + Γ z, p⁻(s', argmax_a q(s', a))),   R = Σ_{k<n} γᵏ r_{t+k},   Γ = γⁿ, or 0 after a terminal state
    L = E[−w Σ_i m_i log p_i(s, a)],   priorities KL(m ‖ p)^0.5

The program is that of `c51`, with these defaults; its docstring has the notation. To take one of the parts
out, set target = "max", head = "plain", n_step = 1 or replay = "uniform".

Differs from the paper: exploration is ε-greedy, as in Dopamine's Rainbow (Castro et al. 2018,
arXiv:1812.06110), in place of noisy layers; an n-step return is not corrected for the actions that were
explored (as in the paper); and as `dqn` does (soft target updates, clipped gradients, truncated steps
bootstrap from their true final observation).
"""

from __future__ import annotations

from typing import Literal

from flax import struct

from rljax.algorithms.c51 import Metrics, State, make

__all__ = ["Config", "Metrics", "State", "make"]


@struct.dataclass
class Config:
    """Fields of Rainbow; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of Adam, at the start
    discount: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    exploration_fraction: float = 0.2  # of the run, over which ε falls
    target_rate: float = 0.01  # how far the target network moves, 1: copies
    max_grad_norm: float = 10.0  # global norm to which gradients are clipped
    adam_epsilon: float = 1.5e-4
    priority_exponent: float = 0.5  # α of prioritised replay
    importance_exponent: float = 0.4  # β of prioritised replay at the start, 1 at the end
    value_low: float = -10.0  # V_low, the least return that an atom stands for
    value_high: float = 10.0  # V_high, the largest
    atoms: int = struct.field(pytree_node=False, default=51)  # M, of each distribution
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    train_every: int = struct.field(pytree_node=False, default=1)  # rows between updates
    num_updates: int = struct.field(pytree_node=False, default=2)  # after every train_every rows
    batch_size: int = struct.field(pytree_node=False, default=128)
    buffer_size: int = struct.field(pytree_node=False, default=50_000)  # transitions, of all environments
    learning_starts: int = struct.field(pytree_node=False, default=5_000)  # random steps before learning
    target_every: int = struct.field(pytree_node=False, default=1)  # updates between moves of the target
    n_step: int = struct.field(pytree_node=False, default=3)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="relu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="lecun")
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    head: Literal["plain", "dueling", "linear_dueling"] = struct.field(pytree_node=False, default="dueling")
    hidden_normalization: Literal["none", "layer"] = struct.field(pytree_node=False, default="none")
    target: Literal["max", "double"] = struct.field(pytree_node=False, default="double")
    replay: Literal["uniform", "prioritized"] = struct.field(pytree_node=False, default="prioritized")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="linear"
    )  # learning rate
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return -(-self.learning_starts // self.num_envs) * self.num_envs
