"""From an observation of any space to the array that a network eats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.math.normalizers import NORMALIZERS, Normalizer
from rljax.types import Array, Box, Discrete, MultiDiscrete, PyTree, Space


def normalizer(space: Space, config: Any) -> Normalizer:
    """What config.observation_normalization names, for observations of `space`.

    Raises: ValueError for an unknown name, and for "running" where a part of the observation is a category,
    not a number.
    """
    checks.choice(config, "observation_normalization", NORMALIZERS)
    if config.observation_normalization != "none" and not all(
        isinstance(leaf, Box) for leaf in leaves(space)
    ):
        raise ValueError(
            f"observation_normalization = {config.observation_normalization!r}: {space} has categories, "
            "which have no mean; "
            "use 'none', or one_hot them with rljax.envs.wrappers.flatten_observation"
        )
    return NORMALIZERS[config.observation_normalization]


def leaves(space: Space) -> list[Space]:
    """The spaces that a pytree space is made of."""
    if isinstance(space, Mapping):
        return [leaf for name in sorted(space) for leaf in leaves(space[name])]
    if isinstance(space, tuple):
        return [leaf for child in space for leaf in leaves(child)]
    return [space]


def batch_shape(space: Space, observation: PyTree) -> tuple[int, ...]:
    """The leading axes of `observation` beyond those of `space`."""
    leaf, leaf_space = next(_leaves(space, observation))
    return leaf.shape[: leaf.ndim - len(leaf_space.shape)]


def vectorise(space: Space, observation: PyTree) -> Array:
    """One float32 row per observation, (B, D): leaves flattened and joined, integers of a Discrete one-hot.

    B is the product of the leading axes of `observation`.
    """
    parts = []
    for leaf, leaf_space in _leaves(space, observation):
        if isinstance(leaf_space, Discrete):
            parts.append(jax.nn.one_hot(leaf.reshape(-1), leaf_space.n))
        elif isinstance(leaf_space, MultiDiscrete):
            flat = leaf.reshape(-1, len(leaf_space.sizes))
            parts += [jax.nn.one_hot(flat[:, i], n) for i, n in enumerate(leaf_space.sizes)]
        else:
            size = 1
            for length in leaf_space.shape:
                size *= length
            parts.append(leaf.reshape(-1, size).astype(jnp.float32))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def image(space: Space, observation: PyTree) -> Array:
    """(B, H, W, C) float32 of a Box with three axes."""
    assert isinstance(space, Box)
    return observation.reshape(-1, *space.shape).astype(jnp.float32)


def check_image(space: Space) -> None:
    """Raises: ValueError unless `space` is an image that a 3 × 3 convolution fits."""
    if not isinstance(space, Box) or len(space.shape) != 3 or min(space.shape[:2]) < 3:
        raise ValueError(
            "architecture = 'cnn': needs an observation (height, width, channels) of at least 3 x 3, "
            f"this one is {space}; use 'mlp'"
        )


def _leaves(space: Space, observation: PyTree) -> Any:
    if isinstance(space, Mapping):
        for name in sorted(space):
            yield from _leaves(space[name], observation[name])
    elif isinstance(space, tuple):
        for child, part in zip(space, observation, strict=True):
            yield from _leaves(child, part)
    else:
        yield observation, space
