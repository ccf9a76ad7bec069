"""The nouns of the house: every floor above speaks in these types, and they import nothing of ours.

Shape letters, fixed for the whole project: T time, B batch or environments, N prompts, G group, V vocabulary,
A actions, D features, S seeds (members of a sweep).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array
Key = jax.Array
PyTree = Any


# The metadata of a State's field that a run takes over from the run that it starts from (`--init`).
CARRIED = {"carried": ""}


def copy_of(parameters: str) -> dict[str, str]:
    """CARRIED for a target network, which begins as a copy of the parameters that it tracks: a path of names
    with dots, such as "params.critic".
    """
    return {"carried": parameters}


@dataclass(frozen=True)
class Discrete:
    """The integers 0 .. n − 1, as a scalar of `dtype`."""

    n: int
    dtype: Any = np.int32

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not hasattr(self.n, "__index__") or operator.index(self.n) < 1:
            raise ValueError(f"Discrete: n = {self.n}: must be an integer of at least 1")
        object.__setattr__(self, "n", operator.index(self.n))

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of independent integers: component i lies in 0 .. sizes[i] − 1."""

    sizes: tuple[int, ...]
    dtype: Any = np.int32

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", _sizes("MultiDiscrete: sizes", self.sizes, 1))
        if not self.sizes:
            raise ValueError("MultiDiscrete: sizes = (): must hold at least one")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclass(frozen=True, eq=False)
class Box:
    """Real arrays between `low` and `high`, which broadcast to `shape` (±inf: unbounded).

    A bound of the largest number that `dtype` or float32 can hold is none either, and becomes ±inf.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _sizes("Box: shape", self.shape, 0))
        for name in ("low", "high"):
            _check_bound(name, getattr(self, name), self.shape)
            object.__setattr__(self, name, _bound(getattr(self, name), self.dtype))

    @property
    def is_integer(self) -> bool:
        """Whether there is nothing between two neighbours: integers and booleans."""
        return not jnp.issubdtype(self.dtype, jnp.inexact)


def _bound(bound: Any, dtype: Any) -> Any:
    """`bound` with ±inf for numbers that stand for no bound; a traced one as it is."""
    if isinstance(bound, Tracer):
        return bound
    dtypes = [np.float32, dtype] if jnp.issubdtype(dtype, jnp.floating) else [np.float32]
    largest = min(float(jnp.finfo(each).max) for each in dtypes)
    array = np.asarray(bound)
    none = np.abs(array.astype(np.float64)) >= largest
    return np.where(none, np.copysign(np.inf, array), array)[()] if none.any() else bound


def _sizes(what: str, values: Any, low: int) -> tuple[int, ...]:
    """A list, a tuple or an array (n,) of integers as a tuple of Python's. ValueError for anything else."""
    array = np.asarray(values) if np.ndim(values) == 1 else None
    if array is None or (array.size and array.dtype.kind not in "iu") or (array < low).any():
        shown = " ".join(str(values).split())
        raise ValueError(f"{what} = {shown}: must be integers of at least {low}, such as (3, 2)")
    return tuple(array.tolist())


def _check_bound(name: str, bound: Any, shape: tuple[int, ...]) -> None:
    """ValueError where a bound is not of numbers, or does not broadcast to `shape`; skips traced values."""
    if isinstance(bound, Tracer):
        return
    array = np.asarray(bound)
    fits = array.ndim <= len(shape) and all(
        size in (1, whole) for size, whole in zip(array.shape[::-1], shape[::-1], strict=False)
    )
    if array.dtype.kind not in "biuf" or not fits or np.isnan(array.astype(np.float64)).any():
        shown = " ".join(str(bound).split())
        raise ValueError(f"Box: {name} = {shown}: must be numbers that broadcast to the shape {shape}")


# A space, or a dict or tuple of spaces for pytree observations.
Space = Discrete | MultiDiscrete | Box | Mapping[str, Any] | tuple


def space_bytes(space: Space) -> int:
    """Bytes of one element of a space."""
    if isinstance(space, Mapping | tuple):
        return sum(map(space_bytes, space.values() if isinstance(space, Mapping) else space))
    return math.prod(space.shape) * np.dtype(space.dtype).itemsize


class Env(NamedTuple):
    """A control problem as pure functions over one instance; batch it with `vmap`.

    `step` never resets: its observation is the true next one, also where the episode ends. Environment
    parameters are closed over as leaves, so building an Env inside a traced function sweeps them.
    """

    name: str
    reset: Callable[[Key], tuple[PyTree, PyTree]]  # (key) -> (observation, state)
    step: Callable  # (key, state, action) -> (observation, state, reward, terminated, truncated)
    observation_space: Space
    action_space: Space
    max_steps: int | None = None  # no episode is longer; None: no limit, or a traced one
    # Whether an episode may be truncated before `max_steps`, or at all where that is None. Replay then has
    # room for a true final observation beside every transition: True is always safe, False saves memory.
    truncates_early: bool = True
    source: Any = None  # what it was adapted from: (gymnax environment, its parameters), or a tabular.MDP


class Feed(NamedTuple):
    """Rows that are read while they are learnt, a block at a time, in place of those of a `Task`."""

    blank: PyTree  # a block of zeros: the shapes that the program is compiled for
    iterations: int  # that one block is for, K
    init: Callable[[], dict[str, int]]  # () -> where the first block begins, as JSON can say it
    # (where a block begins) -> (where the next one does, the block as numpy arrays)
    next: Callable[[Mapping[str, int]], tuple[dict[str, int], PyTree]]
    sha256: str = ""  # of the files and how they are read, so that another order of data is noticed


class Prompts(NamedTuple):
    """N prompts, and what else is known of each. Arrays begin with the axis N, so that rows can be chosen."""

    tokens: Any  # (N, P) int32, padded on the left
    valid: Any  # (N, P) bool: where there is a token
    reference: PyTree = None  # (N, ...): what the rewards are told of a prompt, such as its answer
    # (N, T) int32: a completion to imitate with its stop token, −1 after it; −1 alone where there is none
    demonstration: Any = None


SIDE_BY_SIDE = "side_by_side"  # the axis of `vmap` over members of a run on one device: see `text.decoding`


class Preferences(NamedTuple):
    """N prompts with K completions each, the first of them preferred; or one each, `desirable` or not."""

    tokens: Any  # (N, P) int32, padded on the left
    valid: Any  # (N, P) bool
    completion: Any  # (N, K, T) int32, with its stop token, −1 after it; [:, 0] was preferred
    weight: Any  # (N,) float32: how much a judgement counts, 1 for all where annotators are alike
    margin: Any  # (N,) float32: by how much the first is better, 0 where that was not asked
    desirable: Any = None  # (N,) bool, where K is 1: labels without pairs, of `kto`


class Reward(NamedTuple):
    """What completions are worth in one respect. `rljax.text.rewards` makes them.

    In the program `apply` is (params, prompt (B, P), completion (B, T), reference (B, ...)) -> (B,) float32;
    tokens are −1 where there is none, a completion ends with the first of the task's stop tokens. On the host
    it is (prompts, completions, records), all lists, -> (values, failed, absent), (B,), the last two bool.

    NaN says that a completion could not be scored: nothing is learnt from it, and it is counted. One that is
    `absent` does not apply: the others are added up.
    """

    name: str
    apply: Callable[..., Any]
    params: PyTree = None  # of a reward model
    weight: float = 1.0  # in the sum of a task's rewards
    host: bool = False
    special_tokens: bool = False  # whether strings on the host show them; in the program all tokens are seen
    # whose tokens it understands: a rljax.text.Tokenizer, or how many there are; None: any
    vocabulary: Any = None


class Scores(NamedTuple):
    """What B completions got from each of R rewards, in the units of each."""

    values: Array  # (B, R) float32, NaN where a completion could not be scored
    failed: Array  # (B, R) bool: a function of the host that failed or took too long, whatever it scored
    absent: Array | None = None  # (B, R) bool: the reward does not apply to the completion; None: all do


class Task(NamedTuple):
    """Text to learn from. Arrays reach the algorithm as its `frozen` argument, never as constants."""

    name: str
    vocab_size: int
    # a text (M,) of token ids, or rows packed by `rljax.text.data`, or a Feed of them; for RL Prompts, for
    # what learns from preferences Preferences
    learn: PyTree
    held_out: PyTree  # the same, never learnt from
    params: PyTree = None  # of a model to start from, or to adapt
    tokenizer: Any = None  # a rljax.text.Tokenizer, which a run keeps
    model: LanguageModel | None = None  # of `params`; None: one of the Config's sizes
    generation: Any = None  # how that model wants to be sampled from, models.huggingface.Generation
    corpus: Any = None  # the rljax.text.Corpus that it was read from
    problem: Any = None  # the rljax.text.Problem that it was read from
    rewards: tuple[Reward, ...] = ()
    max_new_tokens: int = 64  # of a completion
    stop_ids: tuple[int, ...] = ()  # tokens that end one
    # (context (P + T,), step (), reference) -> the token that the world writes at this step, −1 where the
    # policy writes: a conversation. None: all of a completion is the policy's.
    observe: Callable[[Array, Array, PyTree], Array] | None = None
    records: Any = None  # what rewards on the host are told: record i of the prompts whose reference is i
    counts: Mapping[str, Any] | None = None  # of a corpus: documents read, cut, and dropped as too long

    @property
    def frozen(self) -> dict[str, PyTree]:
        """What of it is arrays; of a Feed, a block of zeros."""
        params = {} if self.params is None else {"params": self.params}
        learn = self.learn.blank if isinstance(self.learn, Feed) else self.learn
        models = {reward.name: reward.params for reward in self.rewards if reward.params is not None}
        return {"learn": learn, "held_out": self.held_out} | params | ({"rewards": models} if models else {})


class Network(NamedTuple):
    """A network as two pure functions: all that an algorithm sees of one."""

    # (key, observation) -> params; a critic gets an action too, and IQN's network fractions τ
    init: Callable[..., PyTree]
    apply: Callable[..., Any]  # (params, the same inputs) -> outputs, for any leading batch shape


class Dropout(NamedTuple):
    """Noise of training (Srivastava et al. 2014): each number that enters a residual stream is 0 with
    probability `rate`, and else divided by 1 − rate.
    """

    keys: Array  # (B,), one per row, so that its noise is the same whatever rows are computed with it
    rate: Array | float  # ()


class LanguageModel(NamedTuple):
    """A model of text as pure functions of its parameters, decoder-only, encoder-decoder or recurrent.

    Hidden states (..., D) are what `logits` and other heads take. Tokens are int32. Prompts (B, P) are padded
    on the left, with `valid` (B, P) bool where there is a token. `adapters` are low-rank changes of linear
    layers (see `rljax.models.adapters`), or None.
    """

    config: Any
    init: Callable[[Key], PyTree]  # (key) -> params
    # (params, tokens (B, T), segments=None, positions=None, adapters=None, dropout=None) -> hidden (B, T, D).
    # Segments (B, T): 0 is padding, k > 0 the k-th document; attention stays within one, positions restart.
    forward: Callable[..., Array]
    logits: Callable[[PyTree, Array], Array]  # (params, hidden (..., D)) -> (..., V) float32
    # (params, prompt, valid, columns, adapters=None) -> (hidden (B, D) that predicts the first new token,
    # cache with room for `columns` tokens, those of the prompt included)
    prefill: Callable[..., tuple[Array, PyTree]]
    decode: Callable[..., tuple[Array, PyTree]]  # (params, token (B,), cache, adapters=None) -> likewise
    # (params, prompt (B / G, P), valid, completion (B, T), adapters=None, dropout=None) -> hidden (B, T, D):
    # at t the state that predicts completion token t. A prompt has G adjoining completions, and runs once
    completion: Callable[..., Array]
    fork: Callable[[PyTree, int], PyTree]  # (cache, G) -> the cache of G samples of each row, (B · G) rows


class Policy(NamedTuple):
    """What evaluation, rendering and serving run, for a batch of B observations."""

    init: Callable[[], PyTree]  # () -> carry, empty for a feed-forward network
    act: Callable  # (key, observation, carry, greedy) -> (action, carry)


class Split(NamedTuple):
    """One cycle in its parts: two programs with the host between them where a reward lives on the host, and
    what shows a cycle to people.
    """

    sample: Callable  # (key, State) -> rollout
    # (rollout) -> Scores, NaN in the columns of rewards that live on the host
    reward: Callable[[Any], Scores]
    learn: Callable  # (key, State, rollout, Scores) -> (State, Metrics)
    advantage: Callable  # (State, rollout, Scores) -> (B, T): what each token is credited with
    greedy: Callable  # (State, E) -> rollout of the most probable completions of E held-out prompts


class Algorithm(NamedTuple):
    """An algorithm is a pair of pure functions over an immutable state pytree."""

    init: Callable[[Key], Any]  # (key) -> State
    step: Callable[
        [Key, Any], tuple[Any, Any]
    ]  # (key, State) -> (State, Metrics): one rollout-and-update cycle
    policy: Callable[[Any], Policy]  # (State) -> Policy
    split: Split | None = None
    # (State, E) -> of each of E held-out rows the sum of what is measured and of how many things, (E,) both:
    # losses and tokens; of greedy completions their rewards and lengths
    measure: Callable[[Any, int], tuple[Array, Array]] | None = None


class Mean(NamedTuple):
    """An average that adds up over time, seeds and devices: the sum of `count` values and their number."""

    total: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, values: Array, where: Array | None = None) -> Mean:
        """The mean of `values`, over the places where `where` holds if it is given."""
        values = jnp.asarray(values, jnp.float32)
        if where is None:
            return cls(values.sum(), jnp.int32(values.size))
        return cls(jnp.where(where, values, 0.0).sum(), where.sum(dtype=jnp.int32))

    @classmethod
    def none(cls) -> Mean:
        """Of nothing."""
        return cls(jnp.float32(0), jnp.int32(0))

    @property
    def value(self) -> Array:
        """total / count, NaN where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), jnp.nan)
