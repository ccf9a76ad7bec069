"""PPO on Acrobot-v1: 1,000,000 steps, 8 seeds in one program.

    python experiments/ppo_acrobot.py [folder]

Took 1.1 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM −73.4, 95 % interval −77.1 to −71.7.
"""

import json
import sys

import rljax
from rljax import ppo

ENV = "Acrobot-v1"
SEEDS = 8
CONFIG = ppo.Config(
    total_steps=1_000_000,
    learning_rate=2e-3,
    entropy_coefficient=0.005,
    num_envs=32,
    num_steps=64,
    num_epochs=8,
    observation_normalization="running",
)


def main(out: str = "runs/ppo-acrobot") -> None:
    result = rljax.train("ppo", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
