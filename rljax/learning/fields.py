"""The fields of a Config, as help and tables show them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

# What a field is that has no comment of its own, where every algorithm means the same by it.
COMMON = {
    "advantage": "of a completion among those of its prompt",
    "aggregation": "of token losses into one",
    "alpha": "of LoRA: its change is scaled by alpha / rank",
    "chunk": "positions whose logits exist at one time",
    "critic": "the value: a head on the policy's states, or a model of its own",
    "dtype": "of products of matrices",
    "group_size": "completions of each prompt",
    "groups": "that are learnt from: all, those whose rewards differ, or of more prompts as many of those",
    "kl_controller": "of the coefficient kl: fixed, or towards kl_target",
    "max_grad_norm": "global norm to which gradients are clipped",
    "max_new_tokens": "of a completion; none: the task's",
    "min_p": "of the policy: share of the best token's probability that others need; none: no limit",
    "num_micro": "parts of a minibatch's gradient; 0: by the backend",
    "num_prompts": "of a cycle",
    "old_log_prob": "that ratios are of: computed again as in training, or those of sampling",
    "overlong": "what becomes of completions without an end",
    "patterns": "layers or leaves that train names, with wildcards",
    "prefix_length": "positions of a trained prefix",
    "rank": "of LoRA",
    "reward_normalization": "of each reward before they are added: none, or per group",
    "reward_whitening": "of the rewards of tokens: none, or their scale",
    "top_k": "of the policy: best tokens that are drawn from; none: all",
    "top_p": "of the policy: probability of the best tokens that are drawn from; none: all",
    "train": "what is trained of a model",
    "warmup_fraction": "of the run, in which the learning rate rises from 0",
    "weight_decay": "of matrices: how much of them each update takes away, times the learning rate",
    "activation": "of the hidden layers: tanh, relu, silu, gelu or elu",
    "action_distribution": "of continuous actions",
    "adam_epsilon": "ε of Adam",
    "advantage_normalization": "over what advantages are whitened",
    "initialization": "of kernels: orthogonal with gain √2, or lecun, which is Flax's default",
    "architecture": "of the network: mlp for vectors, cnn for images",
    "discount": "γ: what a reward is worth a step later",
    "entropy_coefficient": "c_e: weight of the bonus for entropy in the loss",
    "value_coefficient": "c_v: weight of the value's loss beside the policy's",
    "batch_size": "transitions of an update",
    "beta1": "of Adam's mean of gradients",
    "beta2": "of Adam's mean of squared gradients",
    "baseline": "what is subtracted from the return",
    "clip_schedule": "of ε over the run",
    "hidden_size": "width of the model",
    "hidden_sizes": "units of each hidden layer",
    "noise": "behind the actions: independent from step to step, or correlated in time",
    "num_envs": "environments running in parallel",
    "num_epochs": "passes over each rollout",
    "num_heads": "of attention, in each block of the model",
    "num_layers": "blocks of the model",
    "num_minibatches": "gradient steps of each pass over a rollout",
    "observation_normalization": "of observations, by running mean and variance",
    "optimizer": "that the gradients go through",
    "reward_scaling": "of rewards, by the running deviation of discounted returns",
    "head": "of action values: plain, or a value and advantages, with a hidden layer each (dueling) or none",
    "hidden_normalization": "layer norm of the hidden layers, before their activation",
    "epsilon_start": "ε of ε-greedy at the start",
    "epsilon_end": "ε of ε-greedy after exploration_fraction of the run",
    "target": "what the action values are learnt from",
    "replay": "how transitions are drawn: uniform or prioritized",
    "policy_gain": "of a policy's last layer at the start; none: 0.01 of orthogonal, 1 of lecun",
    "n_step": "rewards in a target before it bootstraps",
    "schedule": "of the learning rate over the run",
    "loss": "of an error: squared, or Huber's",
    "temperature": "of the entropy: learnt, or initial_temperature throughout",
    "torso": "whether policy and value have layers in common",
    "value_loss": "squared error, or the larger of it and its clipped form",
}


# The same, where algorithms of language models mean something else.
OF_TEXT = {
    "architecture": "of a model from scratch, where no model is named",
    "loss": "whose ratio is clipped: a token's, a sequence's (GSPO), or a token's as a weight (CISPO)",
}


class Field(NamedTuple):
    """A field of an algorithm's Config, as help and tables show it."""

    name: str
    type: Any
    default: Any
    leaf: bool  # a number that a sweep varies in one compilation, not a static choice
    help: str


def names_of(annotation: Any) -> tuple[str, ...]:
    """The names that a static choice takes; none of another field."""
    parts = typing.get_args(annotation) if takes_function(annotation) else (annotation,)
    return typing.get_args(parts[0]) if typing.get_origin(parts[0]) is typing.Literal else ()


def takes_function(annotation: Any) -> bool:
    """Whether a static choice takes a function of the user's too."""
    return any(typing.get_origin(part) is Callable for part in typing.get_args(annotation))


def fields_of(config: type, common: Mapping[str, str] = MappingProxyType({})) -> tuple[Field, ...]:
    """The fields of a dataclass; the comment beside each in the source is its help, else that in `common`."""
    types, comments = typing.get_type_hints(config), comments_of(config)
    return tuple(
        Field(
            each.name,
            types[each.name],
            None if each.default is dataclasses.MISSING else each.default,
            each.metadata.get("pytree_node", True),
            comments.get(each.name) or common.get(each.name, ""),
        )
        for each in dataclasses.fields(config)
    )


def comments_of(config: type) -> dict[str, str]:
    """The comments on the lines of each annotated field in a class's source; none without a source."""
    try:
        source = textwrap.dedent(inspect.getsource(config))
    except OSError:
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return found
