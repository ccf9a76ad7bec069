"""The definitions, in numpy float64 with loops: slow, obvious, and independent of the code under test."""

from typing import NamedTuple

import numpy as np


class Trajectory(NamedTuple):
    """Steps of one environment with episode ends of both kinds."""

    reward: np.ndarray
    value: np.ndarray
    next_value: np.ndarray  # of the true next observation
    terminated: np.ndarray
    truncated: np.ndarray
    ratio: np.ndarray

    def discount(self, gamma: float) -> np.ndarray:
        return gamma * (1.0 - self.terminated)

    def trace(self, decay: float) -> np.ndarray:
        return decay * (1.0 - (self.terminated | self.truncated))


def trajectory(seed: int, length: int, ends: float = 0.15) -> Trajectory:
    """Random steps; inside an episode next_value[t] is value[t + 1], at its end it is a value of its own."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random(length) < ends, rng.random(length) < ends  # sometimes both
    value, final = rng.normal(size=length + 1), rng.normal(size=length)
    next_value = np.where(terminated | truncated, final, value[1:])
    ratio = np.exp(rng.normal(size=length) * 0.7)
    return Trajectory(rng.normal(size=length), value[:-1], next_value, terminated, truncated, ratio)


def episode_return(steps: Trajectory, start: int, n: int, gamma: float) -> float:
    """Σ γᵏ r until termination, truncation, n steps or the end, then γᵐ v(s') unless terminated."""
    total, weight = 0.0, 1.0
    for t in range(start, min(start + n, len(steps.reward))):
        total += weight * steps.reward[t]
        weight *= gamma
        if steps.terminated[t]:
            return total
        if steps.truncated[t]:
            break
    return total + weight * steps.next_value[t]


def episode_length(steps: Trajectory, start: int) -> int:
    """Steps from `start` to the end of its episode or of the trajectory."""
    ends = np.flatnonzero((steps.terminated | steps.truncated)[start:])
    return int(ends[0]) + 1 if ends.size else len(steps.reward) - start


def lambda_return(steps: Trajectory, start: int, gamma: float, decay: float) -> float:
    """(1 − λ) Σ λⁿ⁻¹ G⁽ⁿ⁾ with the remaining weight on the return of the whole episode."""
    length = episode_length(steps, start)
    mixed = sum(
        (1 - decay) * decay ** (n - 1) * episode_return(steps, start, n, gamma) for n in range(1, length)
    )
    return mixed + decay ** (length - 1) * episode_return(steps, start, length, gamma)


def vtrace_target(
    steps: Trajectory, start: int, gamma: float, decay: float, clip_rho: float, clip_c: float
) -> float:
    """v(x_s) + Σ_t γᵗ⁻ˢ (Π c) ρ_t (r_t + γ V(x_{t+1}) − V(x_t)) over the rest of the episode."""
    total = steps.value[start]
    for t in range(start, start + episode_length(steps, start)):
        product = np.prod(gamma * decay * np.minimum(clip_c, steps.ratio[start:t]))
        bootstrap = 0.0 if steps.terminated[t] else gamma * steps.next_value[t]
        total += product * min(clip_rho, steps.ratio[t]) * (steps.reward[t] + bootstrap - steps.value[t])
    return total
