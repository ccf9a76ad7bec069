"""Rewards that are functions of text, called on the host between two programs."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax.text.rewards.check import check
from rljax.text.rewards.pool import ATTEMPTS, Outcome, Pool, importable, wrong_type
from rljax.text.rewards.worker import outcome
from rljax.text.tokenizer import Tokenizer
from rljax.types import Reward, Scores, Task


def of_text(
    function: Callable[[str, str, Any], float | None],
    name: str | None = None,
    weight: float = 1.0,
    *,
    processes: int | None = None,
    timeout: float = 10.0,
    on_failure: float = math.nan,
    fields: Sequence[str] = (),
    special_tokens: bool = False,
) -> Reward:
    """A reward of one completion: (prompt, completion, record of the prompt) -> a number or a boolean, or
    None where it does not apply to the completion, whose other rewards are then its sum.

    It is called in `processes` processes (None: one per core), which are started at the first batch and stay.
    A completion for which it raises, ends its process or takes longer than `timeout` seconds is tried once
    more, then scores `on_failure` (NaN: it is left out of learning) and counts as failed; the others are not
    harmed. `of_code` is for a function that executes what the policy wrote. Whatever the function started
    ends with its process. A first failure is told in a warning. Two processes do not share variables, and
    print to the terminal of the run. processes=0 calls it in the run's own process, where nothing ends a
    function that hangs. Of a record each of `fields` is needed. With `special_tokens` prompt and completion
    are shown with them (`<think>`, the end mark, …), which are otherwise left out.

    Raises: ValueError where the function cannot be found by another process (a lambda, one inside a function,
    or typed at a prompt), or a number is out of range. Later TypeError where it returns no number, ValueError
    where that is infinite or a record lacks a field, RuntimeError where no process can load it.
    """
    called = name or getattr(function, "__name__", "")
    if called in ("", "<lambda>"):
        where = "" if processes == 0 or importable(function) else " and processes=0, as it stands in no file"
        raise ValueError(f'of_text: {function!r} has no name: pass name="..."{where}')
    if processes is not None and (not isinstance(processes, int) or processes < 0):
        raise ValueError(f"reward {called}: processes = {processes!r}: must be None or at least 0")
    if not timeout > 0 or math.isinf(on_failure):
        raise ValueError(
            f"reward {called}: timeout = {timeout}, on_failure = {on_failure}: must be above 0, and a number "
            "or NaN"
        )
    if processes != 0 and not importable(function):
        raise ValueError(
            f"reward {called}: other processes cannot import the function: define it at the top of a file, "
            "or pass processes=0, which calls it here and without a timeout"
        )
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    call = _here(function, called) if processes == 0 else Pool(function, called, processes or count, timeout)
    quiet: list[str] = []  # holds the first failure, which was told

    def apply(
        prompts: Sequence[str], completions: Sequence[str], references: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for record in references:
            lacks = [field for field in fields if not isinstance(record, Mapping) or field not in record]
            if lacks:
                raise ValueError(f"reward {called}: a record of the task has no field {lacks[0]}")
        outcomes = call(list(zip(prompts, completions, references, strict=True)))
        failed, absent = (
            np.array([kind == which for kind, _ in outcomes], bool) for which in ("error", "absent")
        )
        values = np.array([on_failure if kind == "error" else value for kind, value in outcomes], np.float64)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if np.isinf(values).any():
            raise ValueError(f"reward {called} returned an infinite number: must be finite, or NaN")
        if failed.any() and not quiet:
            quiet.append(outcomes[int(failed.argmax())][1])
            worth = "they are left out" if math.isnan(on_failure) else f"they score {on_failure:g}"
            warnings.warn(
                f"reward {called} failed for {failed.sum()} of {len(failed)} completions ({quiet[0]}): "
                f"{worth}; failures are counted, and no longer told",
                stacklevel=2,
            )
        return values, failed, absent

    return Reward(called, apply, weight=weight, host=True, special_tokens=special_tokens)


def of_code(
    function: Callable[[str, str, Any], float | None],
    name: str | None = None,
    weight: float = 1.0,
    *,
    processes: int | None = None,
    timeout: float = 10.0,
    on_failure: float = 0.0,
    fields: Sequence[str] = (),
    special_tokens: bool = False,
) -> Reward:
    """`of_text` of a function that executes what the policy wrote. That it raises, crashes or hangs is then
    the completion's doing and scores `on_failure`: left out, nothing would teach the policy not to hang.

    Raises: as `of_text`; ValueError for processes=0, where nothing could end a program that hangs.
    """
    if processes == 0:
        raise ValueError("of_code: processes = 0: code is executed in other processes, which can be ended")
    return of_text(
        *(function, name, weight),
        processes=processes,
        timeout=timeout,
        on_failure=on_failure,
        fields=fields,
        special_tokens=special_tokens,
    )


def _here(function: Callable[..., Any], name: str) -> Callable[[Sequence[tuple]], list[Outcome]]:
    """What a pool does, in this process."""

    def call(calls: Sequence[tuple]) -> list[Outcome]:
        found = []
        for each in calls:
            kind, value = outcome(function, each)
            for _ in range(ATTEMPTS - 1):
                kind, value = outcome(function, each) if kind == "error" else (kind, value)
            if kind == "type":
                raise wrong_type(name, value)
            found.append((kind, value))
        return found

    return call


def decoded(tokenizer: Tokenizer, rows: Any, after: Any = None, special_tokens: bool = False) -> list[str]:
    """The text of rows of tokens (B, T) with −1 where there is none, with `special_tokens` or without.

    `after` (B, P): what each row continues, which some tokenizers must see to know of a space between. Ids
    that the tokenizer does not have, of a model with a larger vocabulary, are left out.
    """
    text = lambda ids: tokenizer.decode(ids, skip_special_tokens=not special_tokens)
    known = lambda row: [int(token) for token in row if 0 <= token < tokenizer.vocab_size]
    parts = [known(row) for row in np.asarray(rows)]
    if after is None:
        return [text(part) for part in parts]
    found = []
    for first, part in zip(map(known, np.asarray(after)), parts, strict=True):
        begin, whole = text(first), text(first + part)
        found.append(whole[len(begin) :] if whole.startswith(begin) else text(part))
    return found


def on_host(task: Task, prompts: Any, completions: Any, rows: Any, scores: Scores) -> Scores:
    """`scores` with the columns of the task's host rewards filled in.

    prompts (B, P) and completions (B, T): tokens, −1 where there is none; rows (B,): which of `task.records`
    belongs to each. Raises: ValueError where a reward returns another shape, and what it raises itself.
    """
    if not any(reward.host for reward in task.rewards):
        return scores
    values, failed = np.array(scores.values, np.float32), np.array(scores.failed, bool)
    absent = np.zeros(values.shape, bool) if scores.absent is None else np.array(scores.absent, bool)
    shown = cache(lambda special: _shown(task.tokenizer, prompts, completions, special))
    records = [task.records[int(row)] for row in np.asarray(rows)]
    for column, reward in enumerate(task.rewards):
        if reward.host:
            columns = reward.apply(*shown(reward.special_tokens), records)
            shapes = [np.shape(each) for each in columns]
            if shapes != [(len(records),)] * 3:
                raise ValueError(
                    f"reward {reward.name} returned {', '.join(map(str, shapes))}: must be values, what "
                    f"failed and what is absent, each of shape ({len(records)},)"
                )
            values[:, column], failed[:, column], absent[:, column] = columns
    return Scores(jnp.asarray(values), jnp.asarray(failed), jnp.asarray(absent))


def _shown(
    tokenizer: Tokenizer, prompts: Any, completions: Any, special: bool
) -> tuple[list[str], list[str]]:
    """Prompts and completions as strings, with special tokens or without."""
    begun = decoded(tokenizer, prompts, special_tokens=special)
    return begun, decoded(tokenizer, completions, after=prompts, special_tokens=special)


def tried(task: Task) -> None:
    """Call the task's host rewards once, for a demonstration of the first prompt or an empty completion: what
    is wrong with one is told before anything is compiled.

    Raises: as `on_host`.
    """
    if not any(reward.host for reward in task.rewards):
        return
    check(task)
    some = jax.tree.map(lambda x: np.asarray(x[:1]), task.learn)
    completion = np.full((1, 1), -1) if some.demonstration is None else some.demonstration
    blank = jnp.full((1, len(task.rewards)), jnp.nan)
    scores = Scores(blank, *jnp.zeros((2, *blank.shape), bool))
    on_host(task, np.where(some.valid, some.tokens, -1), completion, some.reference["row"], scores)
