"""Rainbow with layer norm on Acrobot-v1: 300,000 steps, 10 seeds in one program.

    python experiments/rainbow_acrobot.py [folder]

Took 14.5 minutes on 2 cores of an Intel Xeon that other jobs shared.
Return of the greedy policy, 128 episodes per seed: IQM −73.9, 95 % interval −76.5 to −72.2.
"""

import json
import sys

import rljax
from rljax import rainbow

ENV = "Acrobot-v1"
SEEDS = 10
CONFIG = rainbow.Config(
    total_steps=300_000,
    value_low=-100.0,
    value_high=0.0,
    buffer_size=100_000,
    num_updates=1,
    batch_size=64,
    hidden_normalization="layer",
)


def main(out: str = "runs/rainbow-acrobot") -> None:
    result = rljax.train("rainbow", ENV, CONFIG, seeds=SEEDS, out=out)
    print(json.dumps(result.summary["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
