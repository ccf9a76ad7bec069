"""The language model or the reward model of a run, to write and to score with: what its folder keeps, without
the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rljax.learning import trainable
from rljax.models import adapters, huggingface, language_models
from rljax.models.huggingface import Generation
from rljax.runs.folder import checkpoint, files, restore
from rljax.text import Pretrained, load_tokenizer, rewards
from rljax.text.data import Pairs
from rljax.text.data.examples import conversation, fields, turn_end
from rljax.text.data.read import parse, sources, walk
from rljax.text.decoding import bare
from rljax.types import LanguageModel, PyTree, Reward

REWARD_MODEL = "reward_model"


def language_model(
    run: Path | str,
    member: int = 0,
    checkpoint_iteration: int | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
) -> Pretrained:
    """(model, params, tokenizer, generation) of one member of a run of text, with activations in `dtype` and
    parameters in `param_dtype`, None the same. What adapts a base is merged into it, which is read where the
    run found it; a prefix cannot be: there params are the prefix, and the model has the base (see `whole`).

    Stop tokens are those of the model that the run began with, and those with which it has learnt to end: the
    tokenizer's end token, and what ends a turn in its chat template.

    Raises: ValueError or FileNotFoundError in one line.
    """
    told = _told(run)
    if told["algorithm"] == REWARD_MODEL:
        raise ValueError(f"{run} is a reward model: rljax.load_reward(run) scores with it")
    if not (files.at(run) / files.TOKENIZER).is_dir():
        raise ValueError(f"{run} has no tokenizer: train on a text.Corpus, or on a Task with a tokenizer")
    config = _config(run, told, member)
    model, generation = _model(files.at(run), told, config, dtype)
    restored = restore.saved(run, checkpoint_iteration)
    inside = (
        "params.policy." if any(name.startswith("params.policy.") for name in restored.leaves) else "params."
    )
    trained = _member(restored, inside, member)
    model, params = _adapted(run, told, model, config, trained, restored.path)
    tokenizer = load_tokenizer(files.at(run) / files.TOKENIZER)
    ends = *generation.stop_ids, tokenizer.eos_id, turn_end(tokenizer)
    generation = generation._replace(stop_ids=tuple(dict.fromkeys(end for end in ends if end is not None)))
    params = jax.tree.map(lambda x: jnp.asarray(x, param_dtype or dtype), params)
    return Pretrained(model, params, tokenizer, generation)


def parameters(run: Path | str, member: int, network: LanguageModel) -> PyTree:
    """Those of one member of a run that has trained all of `network`, the user's own.

    Raises: ValueError where they are of another model; FileNotFoundError.
    """
    restored = restore.saved(run)
    template = jax.eval_shape(network.init, jax.random.key(0))
    found = checkpoint.rebuild(template, _member(restored, "params.", member), restored.path)
    return jax.tree.map(jnp.asarray, found)


def load_reward(
    run: Path | str,
    member: int | None = None,
    *,
    name: str = REWARD_MODEL,
    weight: float = 1.0,
    ensemble: Literal["mean", "min"] = "mean",
    pessimism: float = 0.0,
    unnormalised: bool = False,
    base: PyTree = None,
    checkpoint_iteration: int | None = None,
    dtype: Any = jnp.float32,
) -> Reward:
    """What one member of a run of `reward_model` gives completions, or all of them together where None, as a
    reward inside the program: see `rljax.text.rewards.of_model`.

    Adapters are joined to the base, which is read where the run found it, or is `base`. Scores are
    normalised here, with the parameters as they are now, on the completions that the run keeps.
    `unnormalised` allows a run that keeps none. Activations and parameters are in `dtype`.

    Raises: ValueError or FileNotFoundError in one line.
    """
    told = _told(run)
    if told["algorithm"] != REWARD_MODEL:
        raise ValueError(f"{run} is {told['algorithm']}, no reward model: train reward_model")
    restored = restore.saved(run, checkpoint_iteration)
    if told["config"]["normalization"] == "none" and not unnormalised:
        raise ValueError(
            f'{run} is an unnormalised reward model: train it with normalization = "samples", or allow it '
            "with unnormalised=True"
        )
    alone, _ = _model(files.at(run), told, _config(run, told, member or 0), dtype)
    model, found = alone, []
    for number in range(len(told["seeds"])) if member is None else [member]:
        config, trained = _config(run, told, number), _member(restored, "params.model.", number)
        model, trained = _adapted(run, told, alone, config, trained, restored.path, base)
        params = {"model": trained, "head": _member(restored, "params.head.", number)}
        narrow = jax.tree.map(lambda x: jnp.asarray(x, dtype), params["model"])
        found.append(_scored(model, params | {"model": narrow}, _member(restored, "samples.", number)))
    params = found[0] if len(found) == 1 else jax.tree.map(lambda *each: jnp.stack(each), *found)
    tokenizer = load_tokenizer(at) if (at := files.at(run) / files.TOKENIZER).is_dir() else None
    return rewards.of_model(
        *(name, model, params, weight),
        ensemble=ensemble,
        pessimism=pessimism,
        vocabulary=tokenizer,
    )


def _scored(model: LanguageModel, params: PyTree, samples: dict[str, np.ndarray]) -> PyTree:
    """`params` with gain and bias."""
    if not samples:
        return params | {"gain": jnp.float32(1), "bias": jnp.float32(0)}
    return jax.jit(rewards.normalised, static_argnums=0)(bare(model), params, Pairs(**samples))


def _told(run: Path | str) -> dict[str, Any]:
    """What the folder says of a run that has a model of text."""
    told = files.read(run)
    if "task" not in told:
        raise ValueError(f"{run} is {told['algorithm']} on {files.world(told)}: it has no language model")
    if "network" in told["own"]:
        raise ValueError(
            f"{run} has a network of your own: rljax.load(run, network=...) gives its parameters"
        )
    return told


def _config(run: Path | str, told: dict[str, Any], member: int) -> Any:
    """The Config of one member."""
    number = len(told["seeds"])
    if not 0 <= member < number:
        raise ValueError(f"member = {member}: {run} has members 0 to {number - 1}")
    config, swept = restore.configured(run, told, restore.algorithm_of(run, told))
    return config.replace(**{name: column[member] for name, column in swept.items()})


def _member(restored: checkpoint.Restored, prefix: str, member: int) -> dict[str, np.ndarray]:
    """The arrays of one member whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): leaf[member]
        for name, leaf in restored.leaves.items()
        if name.startswith(prefix)
    }


def _model(run: Path, told: dict[str, Any], config: Any, dtype: Any) -> tuple[LanguageModel, Generation]:
    """The model that was trained, with parameters in float32 as in training."""
    if (run / files.MODEL).is_dir():
        return huggingface.load_config(run / files.MODEL, dtype=dtype, param_dtype=jnp.float32)
    if "model" in told["own"]:
        raise ValueError(f"{run} has a model of your own that no checkpoint describes: use it from Python")
    config = config.replace(dtype=jnp.dtype(dtype).name)
    return language_models.language_model(told["vocab_size"], config, told["length"]), Generation()


def _adapted(
    run: Path | str,
    told: dict[str, Any],
    model: LanguageModel,
    config: Any,
    trained: dict[str, np.ndarray],
    where: Path,
    base: PyTree = None,
) -> tuple[LanguageModel, PyTree]:
    """The model of one member and all its parameters, of which `trained` are in the checkpoint `where`."""
    adaptation = trainable.ADAPTATIONS[config.train](config, model) if "train" in told["config"] else None
    if adaptation is None:
        template = jax.eval_shape(model.init, jax.random.key(0))
        return model, checkpoint.rebuild(template, trained, where)
    base = _base(run, told, base)
    both = adapters.attach(model, base, adaptation)
    params = checkpoint.rebuild(jax.eval_shape(both.init, jax.random.key(0)), trained, where)
    if config.train == "prefix":
        return both, params
    return model, adapters.bake(params, base, adaptation)


def asked(run: Path | str) -> Any:
    """A held-out prompt of the task that a run learnt, a text or messages; None where it learnt no task."""
    return _told(run).get("prompt")


def talks(run: Path | str) -> bool:
    """Whether a run has learnt conversations: its task asks with messages, or its data begin with some."""
    told = _told(run)
    if told["corpus"] is None:
        return isinstance(told.get("prompt"), list)
    try:
        source = sources(told["corpus"]["data"][0])[0]
        record = parse(next(walk(source, told["corpus"]["documents"])))
        return told["algorithm"] != "pretrain" and conversation(fields(record)) is not None
    except (OSError, ValueError, StopIteration):
        return False


def whole(run: Path | str) -> None:
    """ValueError where a run's parameters are not all of its model's, which is then no model to go on from or
    to write as a checkpoint.
    """
    if _told(run)["config"].get("train") == "prefix":
        raise ValueError(
            f"{run} has trained a prefix, which the parameters of its model cannot hold: generate, evaluate "
            "and load_reward take it"
        )


def _base(run: Path | str, told: dict[str, Any], given: PyTree) -> PyTree:
    start = told.get("start")
    source = start["source"] if start else (told["corpus"] or {}).get("model")
    if given is not None:
        source, base = "base", given
    elif not source:
        raise ValueError(
            f"{run} adapts parameters that Python gave: merge them with models.adapters.bake, or where there "
            "is base=, give them"
        )
    elif start and start["kind"] == "run":
        base = language_model(files.at(run) / source, start["member"]).params
    else:
        base = huggingface.load(source, param_dtype=jnp.float32).params
    if checkpoint.sha256_of(base) != told["frozen"]["params"]:
        raise ValueError(f"{source} is no longer the model that {run} adapts (by sha256)")
    return base
