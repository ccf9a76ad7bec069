"""DDPG on Pendulum-v1: 30,000 steps, 10 seeds in one program.

    python experiments/ddpg_pendulum.py [folder]

Took 3.7 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 1,000 fixed start states: IQM −151.7, 95 % interval −153.2 to −150.1.
"""

import json
import sys

import rljax
from rljax import ddpg

ENV = "Pendulum-v1"
SEEDS = 10
CONFIG = ddpg.Config(
    total_steps=30_000,
    target_rate=0.02,
    num_steps=100,
    batch_size=100,
    buffer_size=30_000,
    schedule="linear",
    observation_normalization="running",
)


def main(out: str = "runs/ddpg-pendulum") -> None:
    result = rljax.train("ddpg", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
