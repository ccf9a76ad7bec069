"""What the algorithms that train a LanguageModel share: which of its parameters, and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from rljax import checks
from rljax.math import optimization, schedules
from rljax.models import adapters
from rljax.models.language_models import language_model
from rljax.models.optimization import MasterState, decay_mask, master_weights
from rljax.types import Array, Key, LanguageModel, PyTree, Task

# Heads over the vocabulary of `rlhf_ppo`'s separate critic and of a reward model, which no loss reads.
UNREAD = ("critic/head", "model/head")
TOKENS = 1024  # that are computed at a time on a CPU, whose caches they then fit in

ADAPTATIONS: dict[str, Callable[[Any, LanguageModel], adapters.Adaptation | None]] = {
    "all": lambda config, model: None,
    "lora": lambda config, model: adapters.lora(config.patterns, config.rank, config.alpha),
    "prefix": lambda config, model: adapters.prefix(model.config, config.prefix_length),
    "subset": lambda config, model: adapters.subset(config.patterns),
}


def check(config: Any) -> None:
    """The fields of AdamW and of the gradient's parts. ValueError naming the one that is wrong."""
    checks.rate(config, "learning_rate")
    positive = "total_steps", "adam_epsilon", "max_grad_norm", "warmup_fraction"
    checks.number(config, *positive, low=0, open_low=True)
    checks.number(config, "weight_decay", low=0)
    checks.number(config, "beta1", "beta2", "warmup_fraction", low=0, high=1)
    if hasattr(config, "chunk"):  # what has no logits has none
        checks.count(config, "chunk")
    checks.count(config, "num_micro", low=0)


def adapted(
    task: Task, config: Any, network: LanguageModel | None, frozen: PyTree, length: int
) -> tuple[LanguageModel, LanguageModel, Callable[[Key], PyTree]]:
    """(the model, the model whose parameters are what `config.train` says, (key) -> those at the start).

    The model is `network`, the task's, or one of the Config's sizes for `length` tokens.

    Raises: ValueError naming the field of `config` that is wrong.
    """
    checks.number(config, "alpha", low=0, open_low=True)
    checks.count(config, "rank", "prefix_length")
    checks.read_by(config, "train", ("lora",), "alpha", "rank")
    checks.read_by(config, "train", ("prefix",), "prefix_length")
    checks.read_by(config, "train", ("lora", "subset"), "patterns")
    model = network or task.model or language_model(task.vocab_size, config, length)
    size = model.config.vocab_size
    if size < task.vocab_size:
        raise ValueError(
            f"the task {task.name} has a vocabulary of {task.vocab_size} tokens, its model one of {size}: "
            "begin with a model that has all of them"
        )
    if "params" in frozen:
        _check_params(task, model, frozen["params"])
    adaptation = ADAPTATIONS[config.train](config, model)
    if adaptation is None:
        copy = lambda key: jax.tree.map(jnp.copy, frozen["params"])
        return model, model, copy if "params" in frozen else model.init
    if "params" not in frozen:
        checks.complain(config, "train", 'needs parameters to adapt: name a --model, or choose "all"')
    trained = adapters.attach(model, frozen["params"], adaptation)
    return model, trained, trained.init


def _check_params(task: Task, model: LanguageModel, params: PyTree) -> None:
    """ValueError naming the first of the given parameters that is not of the model."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        return
    named = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    begun = lambda words: model.init(jax.random.wrap_key_data(words, impl="threefry2x32"))
    given, own = named(params), named(jax.eval_shape(begun, jax.ShapeDtypeStruct((2,), jnp.uint32)))
    for name in dict.fromkeys((*own, *given)):
        there, here = (tree[name].shape if name in tree else "absent" for tree in (given, own))
        if there != here:
            raise ValueError(
                f"the task {task.name} begins with parameters of another model: {name} is {there}, in its "
                f"model of {model.config.vocab_size} tokens {here}"
            )


def check_start(config: Any, frozen: PyTree) -> None:
    """`kl`, the coefficient of a penalty towards the policy at the start. ValueError where there is none."""
    if config.kl is not None:
        checks.number(config, "kl", low=0)
        need_start(config, "kl", frozen)


def need_start(config: Any, field: str, frozen: PyTree) -> None:
    """ValueError where there are no parameters of a policy at the start, which `field` is about."""
    if "params" not in frozen:
        checks.complain(config, field, "needs the parameters of a policy to stay close to: name a --model")


def optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW's direction (Loshchilov & Hutter 2019), gradients clipped before, without the learning rate.
    Where a parameter is stored in half precision, its state begins with float32 copies of all: see `move`.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, partial(decay_mask, unread=UNREAD)),
    )

    def init(params: PyTree) -> PyTree:
        half = any(jnp.dtype(leaf.dtype).itemsize < 4 for leaf in jax.tree.leaves(params))
        return master_weights(adamw).init(params) if half else adamw.init(params)

    return optax.GradientTransformation(init, adamw.update)


def move(
    config: Any, params: PyTree, opt_state: PyTree, gradients: PyTree, iteration: Array
) -> tuple[PyTree, PyTree, Array]:
    """One step of AdamW at the learning rate of an iteration: of the float32 copies where there are some, to
    which the parameters are then rounded.

    Returns: parameters, the optimizer's state, and the gradient's norm before clipping, ().
    """
    share = config.steps_per_iteration / config.total_steps
    warm = schedules.interpolate(0.0, 1.0, (iteration + 1) * share, config.warmup_fraction)
    rate = config.learning_rate * warm * schedules.factor(config.schedule, iteration * share)
    if not isinstance(opt_state, MasterState):
        updates, opt_state = optimizer(config).update(gradients, opt_state, params)
        return optimization.move(params, -rate, updates), opt_state, optax.tree.norm(gradients)
    gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
    updates, inner = optimizer(config).update(gradients, opt_state.inner, opt_state.master)
    master = optimization.move(opt_state.master, -rate, updates)
    params = jax.tree.map(lambda x, m: m.astype(x.dtype), params, master)
    return params, MasterState(master, inner), optax.tree.norm(gradients)


def parts(config: Any, rows: int, length: int) -> int:
    """In how many microbatches the gradient of so many rows of so many tokens is computed: num_micro, or
    where that is 0 all at once on an accelerator, on a CPU about TOKENS tokens at a time.
    """
    if config.num_micro or jax.default_backend() != "cpu":
        return config.num_micro or 1
    least = -(-rows * length // TOKENS)
    fitting = (n for n in range(least, rows) if rows % n == 0)
    return next(fitting, rows)


def layout(config: Any, rows: int, width: int, prompt: int) -> tuple[int, int]:
    """In how many microbatches a minibatch of so many completions of so many tokens goes through, and how
    many completions of one prompt are side by side in each, whose prompt then runs once.
    """
    size = rows // config.num_minibatches
    number = parts(config, size, width + prompt)
    return number, math.gcd(config.group_size, size // number)
