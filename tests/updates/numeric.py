"""What the updates by hand share: float64 derivatives by differences, and optimizers by their formulas.

Nothing here imports rljax or JAX's derivatives. Parameters are {name: float64 array}.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Params = dict[str, np.ndarray]
DIFFERENCE = 1e-6


def wide(params: Mapping[str, Any]) -> Params:
    """The same numbers in float64."""
    return {name: np.array(value, np.float64) for name, value in params.items()}


def gradient(loss: Callable[[Params], float], params: Params) -> Params:
    """Central differences of `loss` in every number of `params`."""
    found = {}
    for name, value in params.items():
        found[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * DIFFERENCE
                sides.append(loss({**params, name: moved}))
            found[name][index] = (sides[0] - sides[1]) / (2 * DIFFERENCE)
    return found


def clipped(gradients: Params, norm: float) -> Params:
    """Scaled down to the global `norm` where it is above that."""
    size = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {name: g * min(1.0, norm / max(size, 1e-30)) for name, g in gradients.items()}


class Adam:
    """Kingma & Ba 2015, algorithm 1, with a learning rate of the call's."""

    def __init__(self, epsilon: float, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.epsilon, self.betas, self.count = epsilon, (beta1, beta2), 0
        self.first: dict[str, Any] = {}
        self.second: dict[str, Any] = {}

    def direction(self, gradients: Params) -> Params:
        self.count += 1
        found = {}
        for name, g in gradients.items():
            one, two = self.betas
            self.first[name] = one * self.first.get(name, 0.0) + (1 - one) * g
            self.second[name] = two * self.second.get(name, 0.0) + (1 - two) * g**2
            mean = self.first[name] / (1 - one**self.count)
            square = self.second[name] / (1 - two**self.count)
            found[name] = mean / (np.sqrt(square) + self.epsilon)
        return found

    def step(self, params: Params, gradients: Params, rate: float) -> Params:
        found = self.direction(gradients)
        return {name: value - rate * found[name] for name, value in params.items()}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def agree(found: Any, expected: Params, before: Params, tolerance: float = 2e-4) -> None:
    """Each number has moved as far as it should, to a share of the largest move; and some have moved."""
    for name, right in expected.items():
        move = np.asarray(found[name], np.float64) - before[name]
        size = np.abs(right - before[name]).max()
        assert size > 1e-5, f"{name} should not have moved: nothing is tested"
        np.testing.assert_allclose(move, right - before[name], rtol=0, atol=tolerance * size, err_msg=name)
