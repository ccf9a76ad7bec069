"""A problem to solve in text: prompts, what a completion of one is worth, and what there is to imitate.

    records = [{"prompt": "abc>", "completion": "cba"}, …]
    problem = text.problem("reverse", tokenizer, records, text.rewards.exact_match())
    rljax.train("grpo", problem, seeds=5)

Every algorithm reads from one problem the Task that it learns: `pretrain` its text, `sft` its demonstrations,
`reward_model`, `dpo` and `kto` its preferences, the others its prompts and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import checks
from rljax.text.data.batches import pad_prompts
from rljax.text.data.examples import begun, ended
from rljax.text.data.pairs import Pairs
from rljax.text.tokenizer import Tokenizer
from rljax.types import Array, LanguageModel, Preferences, Prompts, PyTree, Reward, Task

Learns = Literal["text", "demonstrations", "preferences", "prompts"]  # what an algorithm reads from a problem


class Problem(NamedTuple):
    """See the top of this file; `problem` makes one of records, `rljax.text.tasks` has some."""

    name: str
    tokenizer: Tokenizer
    learn: Prompts
    held_out: Prompts
    rewards: tuple[Reward, ...]
    max_new_tokens: int  # of a completion
    stop_ids: tuple[int, ...]  # that end one
    records: Sequence[Any] = ()  # what rewards on the host are told: record i where the reference has row i
    preferences: tuple[Preferences, Preferences] | None = None  # to learn, held out
    text: tuple[Array, Array] | None = None  # of token ids (M,), to learn and held out, before everything
    observe: Callable[[Array, Array, PyTree], Array] | None = None  # see Task.observe
    model: LanguageModel | None = None  # to begin with
    params: PyTree = None
    generation: Any = None
    arguments: Mapping[str, Any] | None = (
        None  # of `tasks.make`, by which a run finds it again; None: one's own
    )

    @property
    def length(self) -> int:
        """Of the longest prompt and the longest completion together."""
        return self.learn.tokens.shape[1] + self.max_new_tokens


def problem(
    name: str,
    tokenizer: Tokenizer,
    records: Sequence[Mapping[str, Any]],
    rewards: Reward | Sequence[Reward],
    *,
    max_new_tokens: int | None = None,
    held_out: float | int = 0.1,
    demonstrated: int | None = None,
) -> Problem:
    """A problem of records {"prompt", "completion" (to imitate, may be missing), …}.

    The last `held_out` of the records (a share, or so many) are never learnt from. Token rewards are told of
    each field but the prompt: a string as its tokens (T,) with −1 after them (a completion with its stop
    token), a number or a list of integers as it is, a list with −1 after it. Host rewards get the record.
    `max_new_tokens` is that of the longest completion where None. Only the first `demonstrated` prompts to
    learn have their completion as a demonstration, where it is not None.

    Raises: ValueError in one line naming the record that is wrong.
    """
    if len(records) < 2:
        raise ValueError(f"problem {name}: {len(records)} records: needs two, one of them to hold out")
    wanted = held_out * len(records) if isinstance(held_out, float) else held_out
    number = min(max(1, round(wanted)), len(records) - 1)
    prompts = [begun(tokenizer, _string(name, i, record)) for i, record in enumerate(records)]
    if [] in prompts:
        raise ValueError(f"problem {name}: the prompt of record {prompts.index([])} is empty")
    tokens, valid = pad_prompts(prompts)
    reference = _reference(name, tokenizer, records)
    longest = 0 if "completion" not in reference else reference["completion"].shape[1]
    length = longest if max_new_tokens is None else max_new_tokens
    if length < max(1, longest):
        raise ValueError(
            f"problem {name}: max_new_tokens = {length}: must be at least {max(1, longest)}, as the "
            "longest completion with its stop token"
        )
    if "completion" in reference:
        reference["completion"] = widen(reference["completion"], length)
    rows = Prompts(tokens, valid, reference, reference.get("completion"))
    first = len(records) - number
    if demonstrated is not None and rows.demonstration is not None:
        hidden = (np.arange(len(records)) >= demonstrated) & (np.arange(len(records)) < first)
        rows = rows._replace(demonstration=np.where(hidden[:, None], -1, rows.demonstration))
    cut = lambda part: jax.tree.map(lambda x: jnp.asarray(x[part]), rows)
    stops = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    rewards = (rewards,) if isinstance(rewards, Reward) else tuple(rewards)
    return Problem(
        *(name, tokenizer, cut(slice(first)), cut(slice(first, None)), rewards, length, stops),
        records=records,
    )


def task(problem: Problem, learns: Learns) -> Task:
    """What an algorithm learns from a problem. Raises: ValueError where the problem has none of it."""
    if learns == "text":
        parts: Any = problem.text
    elif learns == "preferences":
        parts = problem.preferences
    elif learns == "prompts":
        parts = problem.learn, problem.held_out
    else:
        parts = demonstrations(problem.learn), demonstrations(problem.held_out)
        parts = None if None in parts else parts
    if parts is None:
        raise ValueError(f"the task {problem.name} has no {learns}")
    if learns == "prompts" and not problem.rewards:
        raise ValueError(f"the task {problem.name} has no reward")
    size = problem.tokenizer.vocab_size if problem.model is None else problem.model.config.vocab_size
    return Task(
        problem.name,
        size,
        *parts,
        params=problem.params,
        tokenizer=problem.tokenizer,
        model=problem.model,
        generation=problem.generation,
        problem=problem,
        rewards=problem.rewards if learns == "prompts" else (),
        max_new_tokens=problem.max_new_tokens,
        stop_ids=problem.stop_ids,
        observe=problem.observe,
        records=problem.records,
    )


def demonstrations(prompts: Prompts) -> Pairs | None:
    """Prompts with the completions to imitate, of those that have one."""
    if prompts.demonstration is None:
        return None
    mask = prompts.demonstration >= 0
    pairs = Pairs(prompts.tokens, prompts.valid, jnp.where(mask, prompts.demonstration, 0), mask)
    return jax.tree.map(lambda x: x[np.asarray(mask.any(axis=1))], pairs)


def widen(rows: Any, length: int) -> np.ndarray:
    """Rows of tokens (..., T) with −1 after them up to `length`."""
    rows = np.asarray(rows)
    spare = [(0, 0)] * (rows.ndim - 1) + [(0, length - rows.shape[-1])]
    return np.pad(rows, spare, constant_values=-1)


def ragged(rows: Sequence[Sequence[int]], length: int | None = None) -> np.ndarray:
    """Lists of integers as one array (N, T) int32, −1 after each; T is `length` or that of the longest."""
    width = max(map(len, rows)) if length is None else length
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32).reshape(len(rows), width)


def _string(name: str, number: int, record: Mapping[str, Any]) -> str:
    prompt = record.get("prompt") if isinstance(record, Mapping) else None
    if not isinstance(prompt, str):
        raise ValueError(f"problem {name}: record {number} has no prompt that is a string")
    return prompt


def _reference(
    name: str, tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """What token rewards are told: each field that all records have as one array, and the record's number."""
    found: dict[str, np.ndarray] = {"row": np.arange(len(records), dtype=np.int32)}
    integers = lambda value: isinstance(value, list | tuple) and all(isinstance(i, int) for i in value)
    for key in dict.fromkeys(key for record in records for key in record):
        column: list[Any] = [record.get(key) for record in records]
        if key == "completion" and any(value is not None for value in column):
            found[key] = ragged([_completion(name, tokenizer, i, value) for i, value in enumerate(column)])
            continue
        if key == "prompt" or any(value is None for value in column):
            continue
        if all(isinstance(value, str) for value in column):
            found[key] = ragged([tokenizer.encode(value) for value in column])
        elif all(isinstance(value, Number) for value in column):
            array = np.asarray(column)
            if array.dtype.kind not in "fb" and np.abs(array).max() >= 2**31:
                raise ValueError(f"problem {name}: {key} has numbers beyond 32 bits: pass them as strings")
            found[key] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        elif all(map(integers, column)):
            found[key] = ragged(column)
    return found


def _completion(name: str, tokenizer: Tokenizer, number: int, value: Any) -> list[int]:
    """The tokens of a record's completion with their stop token; none where it has none."""
    if value is None:
        return []
    if not isinstance(value, str):
        raise ValueError(
            f"problem {name}: the completion of record {number} is {checks.show(value)}: must be a string"
        )
    return ended(tokenizer, tokenizer.encode(value))
