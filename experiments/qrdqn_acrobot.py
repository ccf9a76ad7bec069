"""QR-DQN with layer norm on Acrobot-v1: 500,000 steps, 10 seeds in one program.

    python experiments/qrdqn_acrobot.py [folder]

Took 11 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM −67.1, 95 % interval −68.1 to −66.1.
"""

import json
import sys

import rljax
from rljax import qrdqn

ENV = "Acrobot-v1"
SEEDS = 10
CONFIG = qrdqn.Config(
    total_steps=500_000,
    quantiles=16,
    batch_size=64,
    buffer_size=100_000,
    hidden_sizes=(128, 128),
    hidden_normalization="layer",
)


def main(out: str = "runs/qrdqn-acrobot") -> None:
    result = rljax.train("qrdqn", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
