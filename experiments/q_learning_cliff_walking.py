"""Q-learning on CliffWalking: 200,000 steps, 10 seeds in one program.

    python experiments/q_learning_cliff_walking.py [folder]

Took 0.5 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM −13.0, 95 % interval −13.0 to −13.0.
That is the shortest way, along the cliff; while exploring (ε = 0.1) it falls: −51.8 per episode at last.
"""

import json
import sys

import rljax
from rljax import q_learning

ENV = "CliffWalking-tabular"
SEEDS = 10
CONFIG = q_learning.Config(
    total_steps=200_000,
    step_size=1.0,
    step_size_decay=0.0,
    discount=1.0,
    epsilon_start=0.1,
    epsilon_end=0.1,
)


def main(out: str = "runs/q-learning-cliff-walking") -> None:
    result = rljax.train("q_learning", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
