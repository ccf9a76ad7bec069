"""Supervised fine-tuning: maximum likelihood of the completions of dialogues or pairs.

    L = −Σ m_{b, t} log p(x_{b, t} | x_{b, <t}) / Σ m_{b, t}

where m marks the completions' tokens (the assistant's turns of a chat), the sum runs over the whole batch and
p attends within a document only. One step is one update from batch_size rows; every epoch goes through the
rows in a new order, which is a pure function of a key in State and the iteration: a resumed run goes on
exactly where it stopped.

The task is a `Task` whose `learn` and `held_out` are rows packed by `rljax.text.data`, or its Pairs of
prompts and completions, which encoder-decoders need; `length` is that of a row, of a pair that of both.
`frozen["params"]` are the parameters to start from. Adapters leave them frozen and are all that State holds,
so that many seeds or learning rates share one base. What it trains of a model, see `rljax.models.adapters`:

    "all"    every parameter
    "lora"   low-rank changes of the layers that `patterns` name (Hu et al. 2021, arXiv:2106.09685)
    "prefix" keys and values of prefix_length positions before every sequence (Li & Liang 2021,
             arXiv:2101.00190)
    "subset" the leaves that `patterns` name, such as ("head",)

Differs from common trainers: the loss is a mean over the tokens of the whole batch, not one of means.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import maximum_likelihood, trainable
from rljax.learning.maximum_likelihood import Rows
from rljax.models.language_models import language_model
from rljax.models.seq2seq import Seq2SeqConfig
from rljax.text import Corpus, data
from rljax.text import corpus as corpora
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Policy, PyTree, Task

LEARNS = "demonstrations"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 1_000_000  # tokens of the run, those of prompts and padding included
    learning_rate: float = 2e-4  # of AdamW, at its highest
    warmup_fraction: float = 0.05  # of the run, in which the learning rate rises from 0
    weight_decay: float = 0.0  # of matrices
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # global norm to which gradients are clipped
    dropout: float | None = None  # share of what enters the residual stream that is 0; None: no such noise
    alpha: float = 16.0  # of LoRA: its change is scaled by alpha / rank
    batch_size: int = struct.field(pytree_node=False, default=16)  # rows of an update
    length: int = struct.field(pytree_node=False, default=256)  # tokens of a row, T
    num_micro: int = struct.field(pytree_node=False, default=0)  # parts of the gradient; 0: by the backend
    chunk: int = struct.field(pytree_node=False, default=128)  # positions whose logits exist at one time
    train: Literal["all", "lora", "prefix", "subset"] = struct.field(
        pytree_node=False, default="all"
    )  # what is trained: all parameters, or an adapter's
    rank: int = struct.field(pytree_node=False, default=8)  # of LoRA
    prefix_length: int = struct.field(pytree_node=False, default=8)
    patterns: tuple[str, ...] = struct.field(pytree_node=False, default=("attention/*",))
    architecture: Literal["llama", "t5", "gru", "lstm"] = struct.field(pytree_node=False, default="llama")
    hidden_size: int = struct.field(pytree_node=False, default=128)
    num_layers: int = struct.field(pytree_node=False, default=4)
    num_heads: int = struct.field(pytree_node=False, default=4)
    dtype: Literal["float32", "bfloat16"] = struct.field(pytree_node=False, default="float32")  # of products
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="linear")

    @property
    def steps_per_iteration(self) -> int:
        return self.batch_size * self.length

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)  # what is trained: all of the model's, or adapters
    opt_state: PyTree
    order: Key  # of the rows
    iteration: Array


class Metrics(NamedTuple):
    loss: Mean  # −log p of a completion's token, in nats
    gradient_norm: Mean  # before clipping


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """Fine-tuning on `task`; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    maximum_likelihood.check(config)
    frozen = task.frozen if frozen is None else frozen
    learn = frozen["learn"]
    if isinstance(learn, data.Block):
        maximum_likelihood.check_block(config, learn)
    elif config.batch_size > (number := tokens_of(learn)[0].shape[0]):
        checks.complain(config, "batch_size", f"must be at most the {number} rows there are to learn")
    for name in ("learn", "held_out"):
        rows = frozen[name].rows if isinstance(frozen[name], data.Block) else frozen[name]
        if config.length != (width := sum(tokens.shape[-1] for tokens in tokens_of(rows))):
            checks.complain(config, "length", f"must be {width}, as the rows of {name}")
    _, model, begin = trainable.adapted(task, config, network, frozen, config.length)

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params = begin(params_key)
        return State(params, trainable.optimizer(config).init(params), order, jnp.int32(0))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        rows = chosen(learn, state, config.batch_size)
        params, opt_state, loss, norm = maximum_likelihood.update(
            model, state.params, state.opt_state, rows, key, state.iteration, config
        )
        return State(params, opt_state, state.order, state.iteration + 1), Metrics(loss, Mean.of(norm))

    def policy(state: State) -> Policy:
        return maximum_likelihood.policy(model, state.params)

    def measure(state: State, count: int) -> tuple[Array, Array]:
        rows = jax.tree.map(lambda x: x[:count], frozen["held_out"])
        return maximum_likelihood.measure(model, state.params, as_rows(rows), config)

    return Algorithm(init, step, policy, measure=measure)


def tokens_of(rows: data.Packed | data.Pairs) -> tuple[Array, ...]:
    """What of the rows is tokens: (N, T), or of pairs (N, P) and (N, T)."""
    return (rows.prompt, rows.completion) if isinstance(rows, data.Pairs) else (rows.tokens,)


def chosen(learn: data.Packed | data.Pairs | data.Block, state: State, batch_size: int) -> Rows | data.Pairs:
    """The rows of one iteration: of all that are in memory in the order of their epoch, or of a block."""
    if isinstance(learn, data.Block):
        return Rows(*data.block_batch(learn, state.iteration))
    return as_rows(data.batch(state.order, state.iteration, learn, batch_size))


def as_rows(rows: data.Packed | data.Pairs) -> Rows | data.Pairs:
    return rows if isinstance(rows, data.Pairs) else Rows(*rows)


def read(corpus: Corpus, config: Config) -> Task:
    """The task of a corpus: rows of `config.length` tokens.

    Raises: FileNotFoundError; ValueError in one line.
    """
    config = checks.fields(config)
    maximum_likelihood.check(config)
    base = corpora.base(corpus, config)
    return corpora.task(corpus, base, rows_of(corpus, base, config))


def rows_of(corpus: Corpus, base: corpora.Base, config: Config) -> corpora.Parts:
    """What is learnt and what is held out: packed rows, of an encoder-decoder pairs, half of a row each."""
    model = base.model or language_model(base.tokenizer.vocab_size, config, config.length)
    if isinstance(model.config, Seq2SeqConfig):
        if corpus.stream:
            checks.complain(corpus, "stream", "is of packed rows, not of an encoder-decoder's pairs")
        if config.length % 2:
            checks.complain(config, "length", "must be even: half is of prompts, half of completions")
        return corpora.pairs(corpus, base.tokenizer, config.length // 2)
    return corpora.packed(corpus, base.tokenizer, config)
