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
        help="A run that trained text, a folder of Hugging Face or llama2.c, or a repository.",
    ),
]
Member = Annotated[int | None, kind(whole, "INT"), arg(help_behavior_hint="(default: the first)")]
Checkpoint = Annotated[int | None, kind(whole, "ITERATION"), arg(help_behavior_hint="(default: the newest)")]
DTYPES = ("float32", "bfloat16")


@dataclass(kw_only=True)
class Generate:
    """Continue a prompt with a language model, or answer it, token by token as they come."""

    model: Model
    # What the model continues or answers. Without it a held-out prompt of the task that a run has learnt,
    # else nothing but the mark that begins a text.
    prompt: str = ""
    # Whether the prompt is what a user says, and the model answers by its chat template; auto: where it has
    # one and, of a run, has learnt conversations.
    chat: Literal["auto", "yes", "no"] = "auto"
    # It ends sooner at a stop token.
    max_new_tokens: Annotated[
        int | None, kind(whole, "INT"), arg(help_behavior_hint="(default: 256, or what there is room for)")
    ] = None
    # 0 takes the most probable token.
    temperature: Annotated[
        float | None, kind(real, "FLOAT"), arg(help_behavior_hint="(default: the model's, or 1)")
    ] = None
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
        prompt, answers = self.asked(tokenizer)
        room = (getattr(model.config, "max_positions", None) or 2**30) - len(prompt) + 1
        new = max(1, min(generation.max_new_tokens or 256, room))
        given = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "max_new_tokens")}
        given = {name: value for name, value in given.items() if value is not None}
        settings = text.Sampling(**{"max_new_tokens": new, **text.sampling_defaults(generation), **given})
        key = jax.random.key(self.seed)
        tokens = text.stream(model, params, key, prompt, settings, generation.stop_ids)
        # a model may have rows for ids that its tokenizer does not have: they are nothing
        known = (token for token in without(tokens, generation.stop_ids) if token < tokenizer.vocab_size)
        written = pieces(tokenizer.decode, prompt, known)
        if answers:  # the prompt is a template's, and was not typed
            next(written)
        for piece in written:
            print(piece, end="", flush=True, file=sys.stdout)
        print()

    def asked(self, tokenizer: Any) -> tuple[list[int], bool]:
        """The tokens of the prompt, and whether they are a conversation, which the model answers."""
        from rljax.runs import pretrained
        from rljax.runs.folder import files
        from rljax.text.data.examples import begun, turns, two_sequences

        run = files.is_run(self.model)
        said: Any = self.prompt or (pretrained.asked(self.model) if run else None) or ""
        chat = tokenizer.template and (pretrained.talks(self.model) if run else bool(said))
        if isinstance(said, list) or self.chat == "yes" or (chat and self.chat == "auto"):
            messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
            return turns(tokenizer, messages)[0], True
        if two_sequences(tokenizer):  # an encoder's
            return tokenizer.encode(said, add_special_tokens=True), False
        if prompt := begun(tokenizer, said):
            return prompt, False
        begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if begin is None:
            raise ValueError(f"{self.model} has no mark that begins a text: give a --prompt")
        return [begin], False


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
        from rljax.runs import pretrained
        from rljax.runs.folder import files
        from rljax.text import llama2c_tokenizer as pieces_module

        if self.folder.exists():
            raise ValueError(f"{self.folder} is already there: choose a new folder")
        if files.is_run(self.model):
            pretrained.whole(self.model)
        loaded = load(self.model, self.dtype, self.member, self.checkpoint)
        model, params, tokenizer, generation = loaded
        huggingface.save(self.folder, model, params, generation)
        tokenizer.save(self.folder)
        pieces_module.write_json(self.folder)
        print(self.folder)


def load(source: str, dtype: str, member: int | None, checkpoint: int | None) -> Any:
    """The language model of a run, of a folder or of a repository, as a `text.Pretrained`.

    Raises: ValueError or FileNotFoundError in one line.
    """
    import jax.numpy as jnp

    from rljax import text
    from rljax.runs import pretrained
    from rljax.runs.folder import files

    if files.is_run(source):
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
