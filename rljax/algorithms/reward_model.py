"""A model of what people prefer: a score of each completion, learnt from judgements (Ziegler et al. 2019,
arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325).

    "pairwise"  L = Σ w [−log σ(r_0 − r_1 − m) + c (r_0 + r_1)²]         of pairs (Bradley & Terry 1952)
    "choice"    L = Σ w [−log softmax(r_0, ..., r_{K−1})_0 + c (Σ_k r_k)²]  of K completions

where r = gain · h + bias, h is a linear head on the hidden state after a completion's last token, completion
0 was preferred, w is what the judgement counts, of a batch 1 in sum, m its margin (Touvron et al. 2023,
section 3.2.2) and c is `centring` (Eisenstein et al. 2023, arXiv:2312.09244).

Scores are normalised as by Ziegler et al.: at the start gain and bias are such that completions of the policy
at the start (`frozen["params"]`, without those the model as it is drawn) score 0 ± 1. They stay as they are
while the head learns: the bias is nothing to a difference, the gain makes the first logits about 1. The State
keeps the completions, so that the scores of any later parameters can be normalised on the same ones, without
a model that writes and without anything that a resumed run had to remember: `rljax.load_reward` does so, and
`rljax.text.rewards.normalised`. One seed is one member of an ensemble, and `load_reward` joins them.

`measure` counts the held-out judgements in which the preferred completion scores highest. `policy` is the
language model beneath, which is of no more use than to look at it.

Differs from Ziegler et al.: gain and bias are not trained; the samples are up to `normalization_samples` of
the prompts to learn, completed once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import maximum_likelihood, preference_batches, trainable
from rljax.math import preferences
from rljax.models import language_heads
from rljax.text import Sampling, data, generate, rewards
from rljax.text.data import Pairs
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Policy, Preferences, PyTree, Task

LEARNS = "preferences"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 10_000  # judgements of the run
    learning_rate: float = 5e-5  # of AdamW, at its highest
    centring: float | None = None  # c, keeps scores near 0; None: no such term
    temperature: float = 1.0  # of the completions that scores are normalised on
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    alpha: float = 16.0
    batch_size: int = struct.field(pytree_node=False, default=16)  # judgements of an update
    normalization_samples: int = struct.field(
        pytree_node=False, default=256
    )  # completions that the mean 0 is of
    num_micro: int = struct.field(pytree_node=False, default=0)  # parts of the gradient; 0: by the backend
    loss: Literal["pairwise", "choice"] = struct.field(
        pytree_node=False, default="pairwise"
    )  # of pairs, or of the order of K completions
    margin: Literal["none", "data"] = struct.field(
        pytree_node=False, default="none"
    )  # that the loss asks for: none, or that of each judgement
    normalization: Literal["samples", "none"] = struct.field(
        pytree_node=False, default="samples"
    )  # of scores: on completions of the policy at the start, or none
    train: Literal["all", "lora", "prefix", "subset"] = struct.field(
        pytree_node=False, default="all"
    )  # of a model, beside the head
    rank: int = struct.field(pytree_node=False, default=8)
    prefix_length: int = struct.field(pytree_node=False, default=8)
    patterns: tuple[str, ...] = struct.field(pytree_node=False, default=("attention/*",))
    architecture: Literal["llama", "t5", "gru", "lstm"] = struct.field(pytree_node=False, default="llama")
    hidden_size: int = struct.field(pytree_node=False, default=128)
    num_layers: int = struct.field(pytree_node=False, default=4)
    num_heads: int = struct.field(pytree_node=False, default=4)
    dtype: Literal["float32", "bfloat16"] = struct.field(pytree_node=False, default="float32")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="linear")

    @property
    def steps_per_iteration(self) -> int:
        return self.batch_size

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    # {"model": what is trained of it, all or adapters, "head"}
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree
    gain: Array  # (), of the scores that the loss sees
    bias: Array  # ()
    samples: Pairs | None  # that scores are normalised on; None: they are not
    order: Key  # of the judgements
    iteration: Array


class Metrics(NamedTuple):
    loss: Mean
    accuracy: Mean  # judgements in which the preferred completion scores highest
    margin: Mean  # its score less the best of the others
    score: Mean  # of a completion
    centre: Mean  # (Σ_k score)² of a judgement
    gradient_norm: Mean  # before clipping


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """A reward model of `task`'s judgements; `network` is the LanguageModel of `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.count(config, "normalization_samples", low=2)
    checks.read_by(config, "normalization", ("samples",), "normalization_samples")
    checks.number(config, "temperature", low=0, open_low=True)
    if config.centring is not None:
        checks.number(config, "centring", low=0)
    frozen = task.frozen if frozen is None else frozen
    width = preference_batches.size(task, frozen) + 1  # the head reads the state after the last token
    base, model, begin = trainable.adapted(task, config, network, frozen, width)
    # a position of its own for nothing that is read matters only where positions are a table
    learned = getattr(model.config, "positions", None) == "learned"
    preference_batches.check(config, task, frozen, model, width if learned else width - 1)
    if config.loss == "pairwise":
        preference_batches.need_pairs(task, frozen, "this loss", 'choose loss = "choice"')
    number, length = frozen["learn"].completion.shape[1:]

    def written(key: Key, params: PyTree, order: Key) -> Pairs:
        """Completions of the policy at the start, `params` where nothing is frozen."""
        learn = frozen["learn"]
        count = min(config.normalization_samples, learn.tokens.shape[0])
        prompt, valid = data.batch(order, 0, (learn.tokens, learn.valid), count)
        loop = "while" if jax.default_backend() == "cpu" else "scan"  # see rljax.text.generate
        settings = Sampling(config.temperature, max_new_tokens=length, loop=loop)
        policy = (base, frozen["params"]) if "params" in frozen else (model, params)
        found = generate(*policy, key, prompt, valid, settings, task.stop_ids)
        return Pairs(prompt, valid, found.tokens, found.mask)

    def init(key: Key) -> State:
        model_key, head_key, sample_key, order = jax.random.split(key, 4)
        params = {
            "model": begin(model_key),
            "head": language_heads.reward_head(model.config.hidden_size).init(head_key),
        }
        gain, bias, samples = jnp.float32(1), jnp.float32(0), None
        if config.normalization == "samples":
            samples = written(sample_key, params["model"], order)
            fitted = rewards.normalised(model, params, samples)
            gain, bias = fitted["gain"], fitted["bias"]
        opt_state = trainable.optimizer(config).init(params)
        return State(params, opt_state, gain, bias, samples, order, jnp.int32(0))

    def scores(params: PyTree, rows: Preferences) -> Array:
        """As the head gives them, (B, K)."""
        if config.centring is None:  # nothing says what its bias is: Adam would follow rounding errors
            params = params | {
                "head": params["head"] | {"bias": jax.lax.stop_gradient(params["head"]["bias"])}
            }
        return language_heads.score(model, params, *preference_batches.flat(rows)).reshape(-1, number)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        del key  # nothing is drawn
        rows, weights = preference_batches.chosen(
            state.order, state.iteration, frozen["learn"], config.batch_size
        )

        def loss_sum(params: PyTree, part: tuple[Preferences, Array]) -> tuple[Array, dict[str, Mean]]:
            rows, weights = part
            given = state.gain * scores(params, rows) + state.bias
            margin = rows.margin if config.margin == "data" else 0.0
            if config.loss == "pairwise":
                loss = preferences.bradley_terry(given[:, 0], given[:, 1], margin)
            else:
                loss = preferences.choice(given, margin)
            centre = preferences.centring(given)
            if config.centring is not None:
                loss = loss + config.centring * centre
            told = jax.lax.stop_gradient(given)
            counted = weights > 0
            return jnp.sum(weights * loss), {
                "accuracy": Mean.of(preference_batches.right(told), counted),
                "margin": Mean.of(told[:, 0] - told[:, 1:].max(axis=1), counted),
                "score": Mean.of(told, jnp.broadcast_to(counted[:, None], told.shape)),
                "centre": Mean.of(jax.lax.stop_gradient(centre), counted),
            }

        params, opt_state, told = preference_batches.update(
            loss_sum, state.params, state.opt_state, (rows, weights), state.iteration, config, number * width
        )
        following = State(
            *(params, opt_state, state.gain, state.bias, state.samples, state.order, state.iteration + 1)
        )
        return following, Metrics(**told)

    def policy(state: State) -> Policy:
        return maximum_likelihood.policy(model, state.params["model"])

    def measure(state: State, count: int) -> tuple[Array, Array]:
        rows = jax.tree.map(lambda x: x[:count], frozen["held_out"])
        correct = lambda rows: preference_batches.right(scores(state.params, rows))
        return preference_batches.measure(correct, rows, config.batch_size)

    return Algorithm(init, step, policy, measure=measure)
