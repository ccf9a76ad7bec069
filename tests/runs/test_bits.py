"""Chunk lengths and a stop change no bit, with XLA's optimisations on, as a user's programs are compiled."""

from typing import Any

import pytest

from rljax import algorithms, envs
from rljax.runs.folder import checkpoint
from rljax.runs.program import engine
from tests.algorithms import tasks

pytestmark = pytest.mark.optimized
CONTROL = {"hidden_sizes": (8,), "num_envs": 4, "num_steps": 16, "total_steps": 1000}
REPLAY = {"learning_starts": 32, "batch_size": 16, "buffer_size": 128, "replay": "prioritized"}
RUNS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "on-policy": ("ppo", lambda: envs.make("CartPole-v1"), {**CONTROL, "num_minibatches": 2}),
    "replay": ("dqn", lambda: envs.make("CartPole-v1"), {**CONTROL, **REPLAY}),
    "text": ("sft", tasks.rows_task, tasks.FIELDS),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_stop_and_chunks_of_other_lengths_change_no_bit(kind: str) -> None:
    """Four iterations at once; in chunks of one, none, one and two; and stopped after two, with the States on
    the host in between, where a checkpoint has them from.
    """
    name, world, fields = RUNS[kind]
    module = algorithms.find(name).module
    program = engine.build(module.make, world(), module.Config(**fields), {}, [5, 6])
    sums = []
    for chunks in ((4,), (1, 0, 1, 2), (2, None, 2)):
        states = program.init()
        for length in chunks:
            if length is None:
                arrays = checkpoint.leaves(program.fetch(states))
                states = checkpoint.rebuild(program.template(), arrays, "here")
                states = program.place(program.unhost(states))
            else:
                states = program.advance(states, length)[0]
        sums.append(checkpoint.sha256_of(program.fetch(states)))
    begun = checkpoint.sha256_of(program.fetch(program.init()))
    assert len({*sums, begun}) == 2, "something else came out, or nothing was learnt"
