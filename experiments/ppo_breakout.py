"""PPO on Breakout-MinAtar: 10,000,000 steps, 3 seeds in one program.

    python experiments/ppo_breakout.py [folder]

TODO
"""

import json
import sys

import rljax
from rljax import ppo

ENV = "Breakout-MinAtar"
SEEDS = 3
CONFIG = ppo.Config(
    total_steps=10_000_000,
    learning_rate=5e-3,
    num_minibatches=8,
    activation="relu",
)


def main(out: str = "runs/ppo-breakout") -> None:
    result = rljax.train("ppo", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
