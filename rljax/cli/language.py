"""The `rljax` commands for language models: write text with one, and change its format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from rljax.cli.options import Count, Optional, kind, real, whole

Model = Annotated[
    Positional[str],
    arg(
        metavar="MODEL",
        help="A run of pretrain or sft, a folder of Hugging Face or llama2.c, or a repository.",
    ),
]
Member = Annotated[int | None, kind(whole, "INT"), arg(help_behavior_hint="(default: the first)")]
Checkpoint = Annotated[int | None, kind(whole, "ITERATION"), arg(help_behavior_hint="(default: the newest)")]
Real = Annotated[float, kind(real, "FLOAT")]
DTYPES = ("float32", "bfloat16")


@dataclass(kw_only=True)
class Generate:
    """Continue a prompt with a language model, token by token as they come."""

    model: Model
    # What the model continues. Without it nothing but the mark that begins a text.
    prompt: str = ""
    # It ends sooner at a stop token.
    max_new_tokens: Annotated[
        int | None, kind(whole, "INT"), arg(help_behavior_hint="(default: 256, or what there is room for)")
    ] = None
    temperature: Real = 1.0  # 0 takes the most probable token.
    # Draw from so many of the most probable tokens only.
    top_k: Annotated[int | None, kind(int, "INT"), Optional] = None
    # Draw from the most probable tokens that have this probability together only.
    top_p: Annotated[float | None, kind(real, "FLOAT"), Optional] = None
    seed: Count = 0  # Of what is drawn.
    # Of activations and parameters.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Whose parameters, of a run.
    member: Member = None
    # The checkpoint of this iteration, of a run.
    checkpoint: Checkpoint = None

    def run(self) -> None:
        import jax

        from rljax import text

        loaded = load(self.model, self.dtype, self.member, self.checkpoint)
        model, params, tokenizer, generation = loaded
        prompt = tokenizer.encode(self.prompt, add_special_tokens=True)
        if not prompt:
            begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            if begin is None:
                raise ValueError(f"{self.model} has no mark that begins a text: give a --prompt")
            prompt = [begin]
        room = (getattr(model.config, "max_positions", None) or 2**30) - len(prompt)
        new = max(1, min(256, room)) if self.max_new_tokens is None else self.max_new_tokens
        settings = text.Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=new,
        )
        key = jax.random.key(self.seed)
        tokens = text.stream(model, params, key, prompt, settings, generation.stop_ids)
        for piece in pieces(tokenizer.decode, prompt, without(tokens, generation.stop_ids)):
            print(piece, end="", flush=True, file=sys.stdout)
        print()


@dataclass(kw_only=True)
class Convert:
    """Read a model and write it as a folder for transformers, vLLM and `rljax`, with its tokenizer."""

    model: Model
    folder: Annotated[Positional[Path], arg(metavar="FOLDER", help="A new folder.")]
    # Of the parameters that are written.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Whose parameters, of a run.
    member: Member = None
    # The checkpoint of this iteration, of a run.
    checkpoint: Checkpoint = None

    def run(self) -> None:
        from rljax.models import huggingface
        from rljax.runs import folder, pretrained

        if self.folder.exists():
            raise ValueError(f"{self.folder} is already there: choose a new folder")
        if folder.is_run(self.model):
            pretrained.whole(self.model)
        loaded = load(self.model, self.dtype, self.member, self.checkpoint)
        model, params, tokenizer, generation = loaded
        huggingface.save(self.folder, model, params, generation)
        tokenizer.save(self.folder)
        print(self.folder)


def load(source: str, dtype: str, member: int | None, checkpoint: int | None) -> Any:
    """The language model of a run, of a folder or of a repository, as a `text.Pretrained`.

    Raises: ValueError or FileNotFoundError in one line.
    """
    import jax.numpy as jnp

    from rljax import text
    from rljax.runs import folder, pretrained

    if folder.is_run(source):
        return pretrained.language_model(source, member or 0, checkpoint, dtype=jnp.dtype(dtype))
    if member is not None or checkpoint is not None:
        raise ValueError(f"{source} is no run: --member and --checkpoint are of runs")
    return text.load_pretrained(source, dtype=jnp.dtype(dtype))


def without(tokens: Iterable[int], stop_ids: Iterable[int]) -> Iterator[int]:
    """The tokens before the first that stops."""
    stops = set(stop_ids)
    for token in tokens:
        if token in stops:
            return
        yield token


def pieces(decode: Any, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text of a prompt, then what each token adds to it; a character of several tokens comes whole."""
    ids, shown = list(prompt), decode(prompt, skip_special_tokens=True)
    yield shown
    for token in tokens:
        ids.append(token)
        whole = decode(ids, skip_special_tokens=True)
        if not whole.endswith("\ufffd"):  # the first bytes of a character are shown with its last
            yield whole[len(shown) :]
            shown = whole
    rest = decode(ids, skip_special_tokens=True)
    yield rest[len(shown) :]
