"""PQN on CartPole-v1: 500,000 steps, 10 seeds in one program.

    python experiments/pqn_cartpole.py [folder]

Took 1.0 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM 500.0, 95 % interval 500.0 to 500.0.
"""

import json
import sys

import rljax
from rljax import pqn

ENV = "CartPole-v1"
SEEDS = 10
CONFIG = pqn.Config(
    total_steps=500_000,
    learning_rate=1e-3,
    trace_decay=0.95,
    epsilon_end=0.2,
    exploration_fraction=0.2,
    reward_scale=0.1,
)


def main(out: str = "runs/pqn-cartpole") -> None:
    result = rljax.train("pqn", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
