"""PQN on Breakout-MinAtar: 10,000,000 steps; 3 seeds in one program, of which the first was run.

    python experiments/pqn_breakout.py [folder]

Took 28 minutes for that seed on one of 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy of seed 0, 512 episodes: mean 89.0, 95 % interval 89.0 to 89.0: each goes the same
way to the time limit of 1,000 steps. Of the exploring policy, epsilon 0.05: about 40.
"""

import json
import sys

import rljax
from rljax import pqn

ENV = "Breakout-MinAtar"
SEEDS = 3
CONFIG = pqn.Config(
    total_steps=10_000_000,
    learning_rate=5e-4,
    num_envs=128,
    num_steps=32,
    num_epochs=2,
    num_minibatches=32,
    hidden_sizes=(128,),
    architecture="cnn",
)


def main(out: str = "runs/pqn-breakout") -> None:
    result = rljax.train("pqn", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
