"""Tiny runs, compiled once per worker."""

from pathlib import Path
from typing import Any

import pytest

from rljax import algorithms
from rljax.algorithms import ppo
from rljax.runs import load
from rljax.runs.recorder import Result, options_from
from rljax.runs.train import train_members
from rljax.types import Env
from tests.runs.tiny import CONFIG, WALK, Quick


@pytest.fixture(scope="session")
def quick() -> Quick:
    """`train`, but programs of one environment and number of members are compiled once for all tests.

    Only numbers of the Config may differ from CONFIG.
    """
    caches: dict[Any, dict[Any, Any]] = {}

    def train(
        out: Path | None = None,
        seeds: tuple[int, ...] = (0, 1, 2),
        env: Env = WALK,
        config: ppo.Config = CONFIG,
        resume: bool = False,
        init: Path | None = None,
        init_member: int | None = None,
        **options: Any,
    ) -> Result:
        return train_members(
            load.setup(algorithms.find("ppo"), env, config, None, {}),
            {},
            list(seeds),
            out,
            resume=resume,
            init=init,
            init_member=init_member,
            options=options_from({"evaluation_episodes": 4, "progress": False} | options),
            cache=caches.setdefault((env.name, len(seeds)), {}),
        )

    return train


@pytest.fixture(scope="session")
def whole(quick: Quick, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Three seeds, uninterrupted, with every second iteration kept; not to be changed by a test."""
    return quick(tmp_path_factory.mktemp("whole") / "run", checkpoint_every=2, log_every=2, keep=100)
