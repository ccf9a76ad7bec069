"""What kind of observations and actions an environment has, in a word or two, without compiling anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rljax.envs.gymnax import library, make
from rljax.types import Box, Discrete, MultiDiscrete, Space

# Its constructor downloads a data set.
_DOWNLOADED = {"MNISTBandit-bsuite": ("matrix 28x28", "discrete 10")}
_OBSERVED = {0: "number", 1: "vector", 2: "matrix", 3: "image"}  # by the number of axes


def kinds(name: str) -> tuple[str, str]:
    """The kinds of the observations and of the actions of this id, such as ("vector 4", "discrete 2").

    Of Gymnax's environments these are what the environment declares. ValueError for an unknown id.
    """
    if name in _DOWNLOADED:
        return _DOWNLOADED[name]
    gymnax = library()
    if name not in gymnax.registered_envs:
        env = make(name)
        return observed(env.observation_space), acted(env.action_space)
    environment, params = gymnax.make(name)
    return observed(_ours(environment.observation_space(params))), acted(
        _ours(environment.action_space(params))
    )


def observed(space: Space) -> str:
    """The kind of observations in this space."""
    if isinstance(space, Box):
        return f"{_OBSERVED.get(len(space.shape), 'array')} {_sizes(space.shape)}".rstrip()
    return _indexed(space)


def acted(space: Space) -> str:
    """The kind of actions in this space."""
    return f"continuous {_sizes(space.shape)}".rstrip() if isinstance(space, Box) else _indexed(space)


def _indexed(space: Space) -> str:
    if isinstance(space, Discrete):
        return f"discrete {space.n}"
    if isinstance(space, MultiDiscrete):
        return f"multi-discrete {_sizes(space.sizes)}"
    assert isinstance(space, Mapping | tuple)
    return f"{'dict' if isinstance(space, Mapping) else 'tuple'} of {len(space)}"


def _sizes(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _ours(space: Any) -> Space:
    """Our space for one that an environment of Gymnax declares, without its bounds."""
    spaces = library().environments.spaces
    if isinstance(space, spaces.Dict):
        return {key: _ours(each) for key, each in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(_ours, space.spaces))
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    return Box(-np.inf, np.inf, tuple(space.shape))
