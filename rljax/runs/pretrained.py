"""The language model of a run, to write with and to hand on: what its folder keeps, without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rljax.algorithms import language
from rljax.models import adapters, huggingface, language_models
from rljax.models.huggingface import Generation
from rljax.runs import checkpoint, folder, load
from rljax.text import Pretrained, load_tokenizer
from rljax.types import LanguageModel, PyTree


def language_model(
    run: Path | str,
    member: int = 0,
    checkpoint_iteration: int | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
) -> Pretrained:
    """(model, params, tokenizer, generation) of one member of a run of text, with activations in `dtype` and
    parameters in `param_dtype`, None the same. What adapts a base is merged into it, which is read where the
    run found it.

    Where the model that the run began with says no stop tokens, the tokenizer's end token is one.

    Raises: ValueError or FileNotFoundError in one line.
    """
    told = folder.read(run)
    if "task" not in told:
        raise ValueError(f"{run} is {told['algorithm']} on {folder.world(told)}: it has no language model")
    if "network" in told["own"]:
        raise ValueError(
            f"{run} has a network of your own: rljax.load(run, network=...) gives its parameters"
        )
    if not (Path(run) / folder.TOKENIZER).is_dir():
        raise ValueError(f"{run} has no tokenizer: train on a text.Corpus, or on a Task with a tokenizer")
    number = len(told["seeds"])
    if not 0 <= member < number:
        raise ValueError(f"member = {member}: {run} has members 0 to {number - 1}")
    _, config, swept = load.configured(run, told)
    config = config.replace(**{name: column[member] for name, column in swept.items()})
    model, generation = _model(Path(run), told, config, dtype)
    restored = load.saved(run, checkpoint_iteration)
    params = _params(run, told, model, config, restored, member)
    tokenizer = load_tokenizer(Path(run) / folder.TOKENIZER)
    if not generation.stop_ids and tokenizer.eos_id is not None:
        generation = generation._replace(stop_ids=(tokenizer.eos_id,))
    params = jax.tree.map(lambda x: jnp.asarray(x, param_dtype or dtype), params)
    return Pretrained(model, params, tokenizer, generation)


def _model(run: Path, told: dict[str, Any], config: Any, dtype: Any) -> tuple[LanguageModel, Generation]:
    """The model that was trained, with parameters in float32 as in training."""
    if (run / folder.MODEL).is_dir():
        return huggingface.load_config(run / folder.MODEL, dtype=dtype, param_dtype=jnp.float32)
    if "model" in told["own"]:
        raise ValueError(f"{run} has a model of your own that no checkpoint describes: use it from Python")
    config = config.replace(dtype=jnp.dtype(dtype).name)
    return language_models.language_model(told["vocab_size"], config, told["length"]), Generation()


def _params(
    run: Path | str,
    told: dict[str, Any],
    model: LanguageModel,
    config: Any,
    restored: checkpoint.Restored,
    member: int,
) -> PyTree:
    """All parameters of the model of one member."""
    inside = (
        "params.policy." if any(name.startswith("params.policy.") for name in restored.leaves) else "params."
    )
    trained = {
        name.removeprefix(inside): leaf[member]
        for name, leaf in restored.leaves.items()
        if name.startswith(inside)
    }
    adaptation = language.ADAPTATIONS[config.train](config, model) if "train" in told["config"] else None
    if adaptation is None:
        template = jax.eval_shape(model.init, jax.random.key(0))
        return checkpoint.rebuild(template, trained, restored.path)
    base = _base(run, told)
    template = jax.eval_shape(adapters.attach(model, base, adaptation).init, jax.random.key(0))
    return adapters.bake(checkpoint.rebuild(template, trained, restored.path), base, adaptation)


def _base(run: Path | str, told: dict[str, Any]) -> PyTree:
    start = told.get("start")
    source = start["source"] if start else (told["corpus"] or {}).get("model")
    if not source:
        raise ValueError(f"{run} adapts parameters that Python gave: merge them with models.adapters.bake")
    if start and start["kind"] == "run":
        base = language_model(Path(run) / source, start["member"]).params
    else:
        base = huggingface.load(source, param_dtype=jnp.float32).params
    if checkpoint.sha256_of(base) != told["frozen"]["params"]:
        raise ValueError(f"{source} is no longer the model that {run} adapts (by sha256)")
    return base
