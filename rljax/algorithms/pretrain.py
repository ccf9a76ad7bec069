"""Pretraining of a language model on one long text (Radford et al. 2018; Karpathy's nanoGPT).

    L = −Σ_{b, t} log p(x_{b, t + 1} | x_{b, 1..t}) / (B (T − 1)),   rows b drawn from anywhere in the text

by AdamW, with a rising then falling learning rate. One step is one update from batch_size rows of `length`
tokens, drawn uniformly with the iteration's own key: a resumed run sees the same rows without remembering
anything. Steps are tokens: batch_size × length per update.

The task is a `Task` whose `learn` and `held_out` are texts (M,) of token ids; what is learnt may be a Feed of
packed rows instead, in the order of the stream. Without a network or a model of the task the model is a Llama
of this Config's sizes; `frozen["params"]`, where there is one, are parameters to go on from.

Differs from the literature: dropout is of what enters the residual stream, not of attention's weights; the
loss is a mean over all tokens of the batch, whatever num_micro.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rljax import checks
from rljax.learning import maximum_likelihood, trainable
from rljax.learning.maximum_likelihood import Rows
from rljax.models.language_models import language_model
from rljax.text import Corpus
from rljax.text import corpus as corpora
from rljax.text.data import Block, Example, block_batch
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Policy, PyTree, Task

LEARNS = "text"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 10_000_000  # tokens of the run
    learning_rate: float = 1e-3  # of AdamW, at its highest
    warmup_fraction: float = 0.05  # of the run, in which the learning rate rises from 0
    weight_decay: float = 0.1  # of matrices
    beta1: float = 0.9
    beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # global norm to which gradients are clipped
    dropout: float | None = None  # share of what enters the residual stream that is 0; None: no such noise
    batch_size: int = struct.field(pytree_node=False, default=32)  # rows of an update
    length: int = struct.field(pytree_node=False, default=256)  # tokens of a row, T
    num_micro: int = struct.field(pytree_node=False, default=0)  # parts of the gradient; 0: by the backend
    chunk: int = struct.field(pytree_node=False, default=128)  # positions whose logits exist at one time
    architecture: Literal["llama", "gru", "lstm"] = struct.field(pytree_node=False, default="llama")
    hidden_size: int = struct.field(pytree_node=False, default=128)
    num_layers: int = struct.field(pytree_node=False, default=4)
    num_heads: int = struct.field(pytree_node=False, default=4)
    dtype: Literal["float32", "bfloat16"] = struct.field(pytree_node=False, default="float32")  # of products
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="cosine")

    @property
    def steps_per_iteration(self) -> int:
        return self.batch_size * self.length

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree
    iteration: Array


class Metrics(NamedTuple):
    loss: Mean  # −log p of a token, in nats
    gradient_norm: Mean  # before clipping


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """Pretraining on `task`; `network` is a LanguageModel of the user's own.

    Raises: ValueError naming a field of `config`, its value and what would be right, or a text too short.
    """
    config = checks.fields(config)
    maximum_likelihood.check(config)
    frozen = task.frozen if frozen is None else frozen
    learn = frozen["learn"]
    if isinstance(learn, Block):
        maximum_likelihood.check_block(config, learn)
    for name in ("learn", "held_out"):
        if isinstance(frozen[name], Block):
            continue
        if frozen[name].ndim != 1 or frozen[name].size < config.length:
            checks.complain(config, "length", f"must be at most the {frozen[name].size} tokens of {name}")
    model = network or task.model or language_model(task.vocab_size, config, config.length)

    def init(key: Key) -> State:
        params = jax.tree.map(jnp.copy, frozen["params"]) if "params" in frozen else model.init(key)
        return State(params, trainable.optimizer(config).init(params), jnp.int32(0))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        rows_key, dropout_key = jax.random.split(key)
        rows = chosen(rows_key, learn, state.iteration, config)
        params, opt_state, loss, norm = maximum_likelihood.update(
            model, state.params, state.opt_state, rows, dropout_key, state.iteration, config
        )
        return State(params, opt_state, state.iteration + 1), Metrics(loss, Mean.of(norm))

    def policy(state: State) -> Policy:
        return maximum_likelihood.policy(model, state.params)

    def measure(state: State, count: int) -> tuple[Array, Array]:
        number = min(count, frozen["held_out"].size // config.length)
        starts = jnp.arange(number, dtype=jnp.int32) * config.length
        rows = cut(frozen["held_out"], starts, config.length)
        return maximum_likelihood.measure(model, state.params, rows, config)

    return Algorithm(init, step, policy, measure=measure)


def chosen(key: Key, learn: Array | Block, iteration: Array, config: Config) -> Rows:
    """The rows of one iteration: from anywhere in a text, or those of a block."""
    if isinstance(learn, Block):
        return Rows(*block_batch(learn, iteration))
    starts = jax.random.randint(key, (config.batch_size,), 0, learn.size - config.length + 1)
    return cut(learn, starts, config.length)


def read(corpus: Corpus, config: Config) -> Task:
    """The task of a corpus: its documents one after the other, with the tokenizer's end token between them;
    of a stream, rows in which a document does not see the one before it.

    Raises: FileNotFoundError; ValueError in one line, also naming a field of `corpus` that is of sft alone.
    """
    config = checks.fields(config)
    maximum_likelihood.check(config)
    for name in ("loss", "packing", "long"):
        if getattr(corpus, name) != getattr(Corpus, name):
            checks.complain(corpus, name, "is of sft; pretrain learns every token of one long text")
    base = corpora.base(corpus, config)

    def joined(documents: list[Example]) -> Array:
        tokens = np.concatenate([document.tokens for document in documents])
        return jnp.asarray(tokens[:-1] if tokens[-1] == base.tokenizer.eos_id else tokens)

    if corpus.stream:
        learn = corpora.feed(replace(corpus, loss="all", packing="sequential"), base.tokenizer, config)
        held_out = corpora.measured(corpus, base.tokenizer)
        return corpora.task(corpus, base, corpora.Parts(learn, joined(held_out)))
    learn, held_out = corpora.documents(corpus, base.tokenizer)
    return corpora.task(corpus, base, corpora.Parts(joined(learn), joined(held_out)))


def cut(text: Array, starts: Array, length: int) -> Rows:
    """Rows (B, length) of a text (M,), from these places on (B,), each one document."""
    tokens = jax.vmap(lambda start: jax.lax.dynamic_slice(text, (start,), (length,)))(starts)
    return Rows(tokens, None, jnp.broadcast_to(jnp.arange(length)[None] > 0, tokens.shape))
