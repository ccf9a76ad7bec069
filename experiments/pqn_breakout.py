"""PQN on Breakout-MinAtar: 2,600,000 steps; 3 seeds in one program, of which the first was run.

    python experiments/pqn_breakout.py [folder]

Took 7 minutes for one seed on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy of seed 0, 512 episodes: mean 23.5, 95 % interval 23.4 to 23.6.
"""

import json
import sys

import rljax
from rljax import pqn

ENV = "Breakout-MinAtar"
SEEDS = 3
CONFIG = pqn.Config(
    total_steps=2_600_000,
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
