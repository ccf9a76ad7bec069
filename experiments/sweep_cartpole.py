"""PPO on CartPole-v1: 5 learning rates × 4 clips × 16 seeds, 320 runs of 100,000 steps in one compilation.

    python experiments/sweep_cartpole.py [folder]

Took 5 minutes on 2 cores of an Intel Xeon that other jobs shared.
Best by mean return over 16 seeds of the greedy policy (128 episodes each), learning rate and clip:
mean 498.7 at 3e-2, 0.2; 497.2 at 3e-2, 0.4; 492.6 at 1e-2, 0.2; all of 1e-1 are below 263.
"""

import json
import statistics
import sys

import rljax
from rljax import ppo

ENV = "CartPole-v1"
SEEDS = 16
CONFIG = ppo.Config(
    total_steps=100_000,
    num_envs=16,
)
GRID = {
    "learning_rate": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "clip": [0.05, 0.1, 0.2, 0.4],
}


def main(out: str = "runs/sweep-cartpole") -> None:
    result = rljax.sweep("ppo", ENV, GRID, CONFIG, seeds=SEEDS, out=out)
    (heat_map,) = rljax.report(out)
    cells: dict[str, list[float]] = {}
    for each in result.members:
        cells.setdefault(f"{each['learning_rate']:g}, {each['clip']:g}", []).append(each["return"])
    means = {cell: round(statistics.fmean(returns), 1) for cell, returns in cells.items()}
    print(json.dumps({"mean return": means, "compilations": result.compilations, "png": str(heat_map)}))


if __name__ == "__main__":
    main(*sys.argv[1:2])
