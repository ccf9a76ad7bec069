"""Generation for a whole dataset: prompts of many lengths, completions that end at many.

Three things make a padded batch waste its work, and each has its remedy here. A short prompt padded to the
longest pays for columns that it does not use: prompts are sorted into a few lengths. A batch runs until its
last row has stopped: rows decode in pieces of `chunk` steps, after each of which the survivors of several
batches at the same step are joined into full ones. And at the end, when too few are left to fill a batch,
they go on in a smaller one. All caches of a length have the same columns and write index at the same step, so
that joining is a choice of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.text.data import buckets, pad_prompts
from rljax.text.decoding import Decoding, Processor, Sampling, advance, bare, begin, numbers
from rljax.text.generate import check
from rljax.types import Array, Key, LanguageModel, PyTree

HALVINGS = 3  # of the batch, for what is left at the end: each is one more program per length


class Sample(NamedTuple):
    """One completion, on the host."""

    tokens: np.ndarray  # (T,) int32, up to the stop token and with it
    log_prob: np.ndarray  # (T,)


class _Batch(NamedTuple):
    state: Decoding
    rows: np.ndarray  # of `state`, those that are still wanted
    owners: np.ndarray  # the completion that each of them is


def decode_many(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    stop_ids: Sequence[int] | Array = (),
    group: int = 1,
    adapters: PyTree = None,
    processors: tuple[Processor, ...] = (),
    batch: int = 64,
    lengths: int = 4,
    chunk: int | None = None,
) -> list[Sample]:
    """`group` completions of each prompt, in their order: those of prompt n are [n · G, (n + 1) · G).

    `batch` is the rows that decode together, `lengths` how many padded prompt lengths there are, `chunk` the
    steps between two regroupings (None: an eighth of max_new_tokens, at least 8). At most one batch waits per
    chunk, so memory holds up to 1 + max_new_tokens / chunk caches. A completion is the one that `generate`
    gives with the same key for all prompts at once, up to rounding: how they are grouped decides nothing.

    Raises: ValueError as `generate`, and for a batch smaller than a group.
    """
    chunk = chunk if chunk is not None else max(8, settings.max_new_tokens // 8)
    if batch < group or chunk < 1 or lengths < 1:
        raise ValueError(
            f"decode_many: batch = {batch}, group = {group}, chunk = {chunk}, lengths = {lengths}: the batch "
            "holds at least a group, the others are at least 1"
        )
    settings = settings.replace(loop="while")  # pyright: ignore[reportAttributeAccessIssue]
    if not prompts:
        return []
    sizes = [len(prompt) for prompt in prompts]
    if 0 in sizes:
        raise ValueError(f"decode_many: prompt {sizes.index(0)} is empty: give it a token")
    found: list[Sample | None] = [None] * (len(prompts) * group)
    fixed = numbers(settings), jnp.asarray(stop_ids, jnp.int32), adapters
    for width, members in buckets(sizes, lengths):
        decoder = _Decoder(model, params, fixed, processors, width, batch, group, chunk, found)
        each = batch // group
        for start in range(0, len(members), each):
            some = members[start : start + each]
            full = np.resize(some, each)  # a batch that is not full repeats its prompts, unwanted
            tokens, valid = pad_prompts([prompts[n] for n in full], width)
            check(model, key, tokens, valid, settings, group)
            decoder.start(jax.vmap(jax.random.fold_in, (None, 0))(key, full), tokens, valid, some)
        decoder.drain()
    samples = [sample for sample in found if sample is not None]
    assert len(samples) == len(found)
    return samples


class _Decoder:
    """The batches of one prompt length: at most one unfinished batch waits at each multiple of `chunk` steps.

    A class, because it is bookkeeping on the host; what it calls is compiled and pure.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        fixed: tuple[Sampling, Array, PyTree],
        processors: tuple[Processor, ...],
        width: int,
        batch: int,
        group: int,
        chunk: int,
        found: list[Sample | None],
    ) -> None:
        self.model, self.params, self.processors = bare(model), params, processors
        self.settings, self.stop_ids, self.adapters = fixed
        self.width, self.batch, self.group, self.chunk, self.found = width, batch, group, chunk, found
        self.waiting: dict[int, _Batch] = {}
        self.axes: tuple[int, ...] = ()

    def begin(self, keys: Array, tokens: Any, valid: Any) -> Decoding:
        return begin(
            *(self.model, self.params, keys, tokens, valid, self.settings, self.stop_ids, self.adapters),
            *(self.group, self.processors),
        )

    def start(self, keys: Array, tokens: np.ndarray, valid: np.ndarray, members: np.ndarray) -> None:
        """Run prompts, of which the first `members` are wanted."""
        if not self.axes:
            of = lambda n: [jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for x in (keys, tokens, valid)]
            self.axes = _batch_axes(*(jax.eval_shape(self.begin, *of(n)) for n in (1, 2)))
        state = self.begin(keys, tokens, valid)
        owners = (members[:, None] * self.group + np.arange(self.group)).reshape(-1)
        rows = np.arange(len(owners))
        wanted = np.arange(len(tokens) * self.group) < len(owners)
        state = state._replace(alive=state.alive & wanted)
        self.push(0, _Batch(state, rows, owners))

    def push(self, level: int, batch: _Batch) -> None:
        """Keep what `batch` has finished; let the rest wait, or go on where a batch is full."""
        batch = self.harvest(batch)
        if not len(batch.rows):
            return
        if level in self.waiting:
            first = self.waiting.pop(level)
            rows = np.concatenate([first.rows, len(_rows(first.state)) + batch.rows])
            owners = np.concatenate([first.owners, batch.owners])
            joined = [
                self.choose(first.state, batch.state, rows[part], owners[part])
                for part in (slice(0, self.batch), slice(self.batch, None))
                if len(rows[part])
            ]
        else:
            joined = [batch]
        for each in joined:
            if len(each.rows) == len(_rows(each.state)) == self.batch:
                self.advance(level, each)
            else:
                self.waiting[level] = each

    def advance(self, level: int, batch: _Batch) -> None:
        state = advance(
            *(self.model, self.params, batch.state, self.settings, self.stop_ids, self.adapters),
            *(self.chunk, self.processors),
        )
        self.push(level + 1, batch._replace(state=state))

    def drain(self) -> None:
        """Finish what waits, in batches as small as hold it."""
        while self.waiting:
            level = min(self.waiting)
            batch = self.waiting.pop(level)
            size = self.batch
            for _ in range(HALVINGS):
                if size % 2 == 0 and size // 2 >= len(batch.rows):
                    size //= 2
            if size < len(_rows(batch.state)):
                batch = self.choose(batch.state, batch.state, batch.rows, batch.owners, size)
            self.advance(level, batch)

    def harvest(self, batch: _Batch) -> _Batch:
        """`batch` without the rows that have ended, whose completions are kept."""
        state = batch.state
        alive, step = jax.device_get((state.alive, state.step))
        going = alive[batch.rows] & (step < self.settings.max_new_tokens)
        if not going.all():
            context, log_prob = jax.device_get((state.context, state.log_prob))
            for row, owner in zip(batch.rows[~going], batch.owners[~going], strict=True):
                tokens = context[row, self.width :]
                length = int((tokens >= 0).sum())
                self.found[owner] = Sample(tokens[:length].copy(), log_prob[row, :length].copy())
        return batch._replace(rows=batch.rows[going], owners=batch.owners[going])

    def choose(
        self, first: Decoding, second: Decoding, rows: np.ndarray, owners: np.ndarray, size: int | None = None
    ) -> _Batch:
        """A batch of `size` rows: those given of both states end to end, and dead ones."""
        size = size or self.batch
        index = np.zeros(size, np.int32)
        index[: len(rows)] = rows
        state = _take(first, second, index, np.arange(size) < len(rows), self.axes)
        return _Batch(state, np.arange(len(rows)), owners)


def _rows(state: Decoding) -> range:
    return range(state.token.shape[0])


def _batch_axes(one: Decoding, two: Decoding) -> tuple[int, ...]:
    """The axis along which each leaf grows with the batch, −1 where none does."""
    grows = lambda a, b: next(
        (i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if n != m), -1
    )
    return tuple(jax.tree.leaves(jax.tree.map(grows, one, two)))


@partial(jax.jit, static_argnames="axes")
def _take(first: Decoding, second: Decoding, index: Array, wanted: Array, axes: tuple[int, ...]) -> Decoding:
    """Rows `index` of the two end to end; those not `wanted` are dead."""
    count = first.token.shape[0]
    from_first = index < count
    low, high = jnp.minimum(index, count - 1), jnp.maximum(index - count, 0)

    def leaf(a: Array, b: Array, axis: int) -> Array:
        if axis < 0:
            return a
        rows, others = jnp.take(a, low, axis=axis, mode="clip"), jnp.take(b, high, axis=axis, mode="clip")
        choice = jnp.expand_dims(from_first, [i for i in range(a.ndim) if i != axis])
        return jnp.where(jnp.broadcast_to(choice, rows.shape), rows, others)

    leaves = map(leaf, *(jax.tree.leaves(x) for x in (first, second)), axes)
    state = jax.tree.unflatten(jax.tree.structure(first), list(leaves))
    return state._replace(alive=state.alive & wanted)
