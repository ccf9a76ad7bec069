"""PPO on Breakout-MinAtar: 10,000,000 steps, 3 seeds in one program.

    python experiments/ppo_breakout.py [folder]

Took 17 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM 45.0, 95 % interval 23.6 to 85.9.
Of three seeds the IQM is the mean, of 85.9, 25.5 and 23.6: only one of them left a plateau near 24.
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
