"""SAC on Pendulum-v1: 30,000 steps, 10 seeds in one program.

    python experiments/sac_pendulum.py [folder]

Took 4.0 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 1,000 fixed start states: IQM −149.5, 95 % interval −150.1 to −148.9.
"""

import json
import sys

import rljax
from rljax import sac

ENV = "Pendulum-v1"
SEEDS = 10
CONFIG = sac.Config(
    total_steps=30_000,
    learning_rate=3e-3,
    target_rate=0.02,
    num_envs=4,
    num_steps=25,
    buffer_size=30_000,
    learning_starts=500,
    schedule="linear",
    observation_normalization="running",
)


def main(out: str = "runs/sac-pendulum") -> None:
    result = rljax.train("sac", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
