"""PPO on MountainCarContinuous-v0: 1,000,000 steps, 8 seeds in one program.

    python experiments/ppo_mountaincar_continuous.py [folder]

Took 1.1 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM 93.81, 95 % interval 93.77 to 93.86.
"""

import json
import sys

import rljax
from rljax import ppo

ENV = "MountainCarContinuous-v0"
SEEDS = 8
CONFIG = ppo.Config(
    total_steps=1_000_000,
    learning_rate=1e-3,
    trace_decay=0.9,
    entropy_coefficient=0.0,
    num_envs=32,
    num_epochs=10,
    initial_log_std=0.5,
    observation_normalization="running",
    reward_scaling="running",
)


def main(out: str = "runs/ppo-mountaincar-continuous") -> None:
    result = rljax.train("ppo", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
