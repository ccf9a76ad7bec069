"""PPO on CartPole-v1: 5 learning rates × 4 clips × 16 seeds, 320 runs of 100,000 steps in one compilation.

    python experiments/sweep_cartpole.py [folder]

TODO
"""

import json
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
    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "clip": [0.05, 0.1, 0.2, 0.4],
}


def main(out: str = "runs/sweep-cartpole") -> None:
    result = rljax.sweep("ppo", ENV, GRID, CONFIG, seeds=SEEDS, out=out)
    (heat_map,) = rljax.report(out)
    best = max(result.members, key=lambda member: member["return"])
    print(json.dumps({"best": best, "compilations": result.compilations, "heat_map": str(heat_map)}))


if __name__ == "__main__":
    main(*sys.argv[1:2])
