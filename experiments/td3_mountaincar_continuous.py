"""TD3 on MountainCarContinuous-v0: 250,000 steps, 10 seeds in one program.

    python experiments/td3_mountaincar_continuous.py [folder]

Took 13.7 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM 93.67, 95 % interval 93.57 to 93.85.
"""

import json
import sys

import rljax
from rljax import td3

ENV = "MountainCarContinuous-v0"
SEEDS = 10
CONFIG = td3.Config(
    total_steps=250_000,
    noise_scale=0.7,
    noise_reversion=0.05,
    target_noise=0.1,
    target_rate=0.02,
    num_envs=8,
    num_steps=64,
    num_updates=2,
    buffer_size=250_000,
    learning_starts=5_000,
    noise="ornstein-uhlenbeck",
    schedule="linear",
    observation_normalization="running",
)


def main(out: str = "runs/td3-mountaincar-continuous") -> None:
    result = rljax.train("td3", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
