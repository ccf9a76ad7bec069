"""SARSA on CliffWalking: 500,000 steps, 10 seeds in one program.

    python experiments/sarsa_cliff_walking.py [folder]

Took 0.6 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM −15.0, 95 % interval −15.0 to −15.0.
Two steps longer than the shortest way, and the best for a policy that explores (ε = 0.1): −20.7 per
episode at last, of −20.7 that are possible.
"""

import json
import sys

import rljax
from rljax import sarsa

ENV = "CliffWalking-tabular"
SEEDS = 10
CONFIG = sarsa.Config(
    total_steps=500_000,
    discount=1.0,
    epsilon_start=0.1,
    epsilon_end=0.1,
)


def main(out: str = "runs/sarsa-cliff-walking") -> None:
    result = rljax.train("sarsa", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
