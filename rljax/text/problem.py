"""A problem to solve in text: prompts, what a completion of one is worth, and what there is to imitate.

    records = [{"prompt": "abc>", "completion": "cba"}, …]
    problem = text.problem("reverse", tokenizer, records, text.rewards.exact_match())
    rljax.train("grpo", problem, seeds=5)

Every algorithm reads from one problem the Task that it learns: `pretrain` its text, `sft` its demonstrations,
`reward_model`, `dpo` and `kto` its preferences, the others its prompts and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Number
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import checks
from rljax.text.data.batches import pad_prompts
from rljax.text.data.examples import conversation, prompted, template_arguments, turn_end, turns
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
    # of `tasks.make`, by which a run finds it again; None: one's own
    arguments: Mapping[str, Any] | None = None
    # the Problem that `tasks.make` gave, from which what differs was changed since; None: one's own
    made: Any = None

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
    """A problem of records {"prompt", "completion" (to imitate, may be missing), …}, of conversations, or of
    Alpaca's {"instruction", "input", "output"}.

    Prompts are strings, or lists of messages, which become text by the tokenizer's chat template (with the
    record's `tools` and `chat_template_kwargs`); of {"messages"} the last turn is the completion where it is
    the assistant's. The last `held_out` of the records (a share, or so many) are never learnt from.

    Token rewards are told of each field but the prompt: a string as its tokens (T,) with −1 after them (a
    completion with its stop token), a number or a list of integers as it is, a list with −1 after it; of
    strings other than completions only where a reward is of tokens, and the tokenizer can write all of them.
    Host rewards get the record. `max_new_tokens` is that of the longest completion where None. Only the first
    `demonstrated` prompts to learn have their completion as a demonstration, where it is not None.

    Raises: ValueError in one line naming the record that is wrong.
    """
    if len(records) < 2:
        raise ValueError(f"problem {name}: {len(records)} records: needs two, one of them to hold out")
    wanted = held_out * len(records) if isinstance(held_out, float) else held_out
    number = min(max(1, round(wanted)), len(records) - 1)
    records = [_spoken(name, i, record) for i, record in enumerate(records)]
    encoded = [_turns(name, tokenizer, i, record) for i, record in enumerate(records)]
    prompts, written = map(list, zip(*encoded, strict=True))
    if [] in prompts:
        raise ValueError(f"problem {name}: the prompt of record {prompts.index([])} is empty")
    tokens, valid = pad_prompts(prompts)
    rewards = (rewards,) if isinstance(rewards, Reward) else tuple(rewards)
    chats = any(not isinstance(record["prompt"], str) for record in records)
    ends = (tokenizer.eos_id, turn_end(tokenizer) if chats else None)
    stops = tuple(dict.fromkeys(end for end in ends if end is not None))
    reference = _reference(name, tokenizer, records, strings=any(not reward.host for reward in rewards))
    if any(written):
        reference["completion"] = ragged(written)
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
    if (
        "completion" in reference and len(stops) > 1
    ):  # as rewards see completions: with one stop token for all
        completion = reference["completion"]
        reference["completion"] = np.where(np.isin(completion, stops), np.int32(stops[0]), completion)
    first = len(records) - number
    if demonstrated is not None and rows.demonstration is not None:
        hidden = (np.arange(len(records)) >= demonstrated) & (np.arange(len(records)) < first)
        rows = rows._replace(demonstration=np.where(hidden[:, None], -1, rows.demonstration))
    cut = lambda part: jax.tree.map(lambda x: jnp.asarray(x[part]), rows)
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
    return Task(
        problem.name,
        _vocab_size(problem),
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


def changes(problem: Problem) -> tuple[str, ...]:
    """The fields of a problem that were changed since `tasks.make` made it; none of one's own problem."""
    made: Problem | None = problem.made
    if made is None:
        return ()
    fields = [name for name in Problem._fields if name not in ("arguments", "made")]
    return tuple(name for name in fields if not _same(getattr(problem, name), getattr(made, name)))


def read_back(given: Task) -> Problem:
    """The problem that a Task was read from, with what was changed in the Task: what is passed is learnt.

    Raises: ValueError where the Task has another vocab_size than its tokenizer or its model.
    """
    problem: Problem = given.problem
    names = ["name", "tokenizer", "params", "model", "generation", "max_new_tokens", "stop_ids", "observe"]
    names += ["records"] + ["rewards"] * isinstance(given.learn, Prompts)
    found = {name: getattr(given, name) for name in names}
    rows = given.learn, given.held_out
    if isinstance(given.learn, Prompts):
        found |= {"learn": given.learn, "held_out": given.held_out}
    elif isinstance(given.learn, Preferences):
        found |= {"preferences": rows}
    elif not isinstance(given.learn, Pairs):
        found |= {"text": rows}
    elif not _equal(rows, tuple(map(demonstrations, (problem.learn, problem.held_out)))):
        shown = lambda pairs: jnp.where(pairs.mask, pairs.completion, -1)
        learn, held_out = (Prompts(each.prompt, each.valid, None, shown(each)) for each in rows)
        found |= {"learn": learn, "held_out": held_out}
    changed = {name: value for name, value in found.items() if not _same(value, getattr(problem, name))}
    problem = problem._replace(**changed)
    size = _vocab_size(problem)
    if given.vocab_size != size:
        raise ValueError(
            f"the task {given.name}: vocab_size = {given.vocab_size}: must be the {size} of its tokenizer or "
            "model"
        )
    return problem


def _same(one: Any, other: Any) -> bool:
    """Whether two fields are the same objects, or equal numbers and strings; tuples by their members."""
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    plain = str | int | float
    return isinstance(one, plain) and isinstance(other, plain) and one == other


def _equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees hold the same arrays, by value."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(np.array_equal, leaves, others))


def _vocab_size(problem: Problem) -> int:
    return problem.tokenizer.vocab_size if problem.model is None else problem.model.config.vocab_size


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


def _spoken(name: str, number: int, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record with a prompt: a conversation is cut before its last turn, where that is the assistant's;
    Alpaca's keys are put in its words.
    """
    if isinstance(record, Mapping) and "instruction" in record:
        record = prompted(dict(record))
    told = isinstance(record, Mapping) and "prompt" not in record
    messages = conversation(record) if told else None
    if isinstance(messages, list | tuple) and messages:
        last = messages[-1]
        if not (isinstance(last, Mapping) and last.get("role") == "assistant" and len(messages) > 1):
            return {**record, "prompt": list(messages)}
        content = last.get("content")
        said = content if set(last) == {"role", "content"} and isinstance(content, str) else [last]
        return {**record, "prompt": list(messages[:-1]), "completion": said}
    if not isinstance(record, Mapping) or not isinstance(record.get("prompt"), str | list):
        raise ValueError(f"problem {name}: record {number} has no prompt that is a string, or messages")
    return record


def _turns(
    name: str, tokenizer: Tokenizer, number: int, record: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """The tokens of a record's prompt, and of its completion with a stop token; none where it has none."""
    prompt, completion = record["prompt"], record.get("completion")
    if not isinstance(completion, str | None if isinstance(prompt, str) else str | list | None):
        raise ValueError(
            f"problem {name}: the completion of record {number} is {checks.show(completion)}: must be a "
            "string"
        )
    try:
        arguments = {} if isinstance(prompt, str) else template_arguments(record)
        return turns(tokenizer, prompt, completion, **arguments)
    except ValueError as error:
        raise ValueError(f"problem {name}: record {number}: {error}") from error


def _reference(
    name: str, tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]], strings: bool
) -> dict[str, np.ndarray]:
    """What token rewards are told: each field that all records have as one array, and the record's number;
    `strings` too, where all of a field can be written.
    """
    found: dict[str, np.ndarray] = {"row": np.arange(len(records), dtype=np.int32)}
    integers = lambda value: isinstance(value, list | tuple) and all(isinstance(i, int) for i in value)
    for key in dict.fromkeys(key for record in records for key in record):
        column: list[Any] = [record.get(key) for record in records]
        if key in ("prompt", "completion") or any(value is None for value in column):
            continue
        if all(isinstance(value, str) for value in column):
            with suppress(ValueError):  # a reward that reads what cannot be written says so by its name
                found |= {key: ragged([tokenizer.encode(value) for value in column])} if strings else {}
        elif all(isinstance(value, Number) for value in column):
            array = np.asarray(column)
            if array.dtype.kind not in "fb" and np.abs(array).max() >= 2**31:
                raise ValueError(f"problem {name}: {key} has numbers beyond 32 bits: pass them as strings")
            found[key] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        elif all(map(integers, column)):
            found[key] = ragged(column)
    return found
