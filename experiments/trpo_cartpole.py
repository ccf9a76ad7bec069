"""TRPO on CartPole-v1: 200,000 steps, 10 seeds in one program.

    python experiments/trpo_cartpole.py [folder]

Took 4.8 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM 500.0, 95 % interval 500.0 to 500.0.
"""

import json
import sys

import rljax
from rljax import trpo

ENV = "CartPole-v1"
SEEDS = 10
CONFIG = trpo.Config(
    total_steps=200_000,
    max_kl=0.01,
    damping=0.1,
    discount=0.99,
    trace_decay=0.95,
    num_envs=16,
    num_steps=64,
    num_value_epochs=20,
)


def main(out: str = "runs/trpo-cartpole") -> None:
    result = rljax.train("trpo", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
