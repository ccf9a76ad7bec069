"""TD3 on Pendulum-v1: 30,000 steps, 10 seeds in one program.

    python experiments/td3_pendulum.py [folder]

Took 3.0 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 1,000 fixed start states: IQM −151.0, 95 % interval −151.7 to −150.1.
"""

import json
import sys

import rljax
from rljax import td3

ENV = "Pendulum-v1"
SEEDS = 10
CONFIG = td3.Config(
    total_steps=30_000,
    noise_scale=0.3,
    target_rate=0.05,
    num_steps=100,
    batch_size=100,
    buffer_size=30_000,
    schedule="linear",
    observation_normalization="running",
)


def main(out: str = "runs/td3-pendulum") -> None:
    result = rljax.train("td3", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
