"""Conversations through a tokenizer's chat template, and which of their tokens are the assistant's.

Training on a conversation means training on what the assistant wrote and on nothing else, and a mask that is
wrong goes unnoticed: the loss falls either way. So the assistant's part is never searched for by markers of
one family. Where the template marks it with {% generation %} that is taken. Else it follows from rendering:
the prompt up to a turn, rendered as for generation, must be a prefix of the whole, and the turn ends where
the conversation up to it ends. Where a template is not like that (it drops an earlier turn's thinking after
having asked for it) nothing is guessed: one line says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rljax.text.tokenizer import Chat, check_messages, no_template, one_line

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[Mapping[str, Any]]


def chat(
    tokenizer: Any, name: str, messages: Messages, add_generation_prompt: bool = False, **arguments: Any
) -> Chat:
    """Tokens of a conversation and which are the assistant's, by a `transformers` tokenizer's template.

    `arguments` go to the template (tools, enable_thinking, ...). With `add_generation_prompt` the mask is all
    False: the conversation is a prompt.

    Raises: ValueError in one line where there is no template, where it fails (a role that it does not know,
    an order that it does not allow, an error in it), or where the assistant's tokens cannot be told.
    """
    check_messages(messages)
    messages = [dict(message) for message in messages]
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name; tools have one of their own
        template = template.get("tool_use" if arguments.get("tools") else "default")
    if not template:
        no_template(name)

    def apply(messages: Messages, prompt: bool, **options: Any) -> Any:
        # tokenizers of version 5 answer with a BatchEncoding unless told otherwise
        options = {"tokenize": False, "return_dict": False} | options
        try:
            return tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=prompt, **options, **arguments
            )
        except ImportError as error:
            raise ImportError('chat templates need jinja2: pip install "rljax[text]"') from error
        except Exception as error:  # a template is a program: it may fail in any way
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template of {name} failed on roles ({roles}): {one_line(error)}"
            ) from error

    if _MARKED.search(template) and not add_generation_prompt:
        result = apply(messages, False, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        tokens, mask = list(result["input_ids"]), [bool(flag) for flag in result["assistant_masks"]]
        if not any(mask) and any(message["role"] == "assistant" for message in messages):
            raise ValueError(
                f"the chat template of {name} marks no token with {{% generation %}} in a conversation that "
                "has an assistant's turn: mend the template, or pass another one as chat_template"
            )
        return Chat(tokens, mask)

    whole = apply(messages, add_generation_prompt)
    tokens, offsets = encode(tokenizer, name, whole)
    if add_generation_prompt:
        return Chat(tokens, [False] * len(tokens))
    mask = [False] * len(tokens)
    marks = special(tokenizer)
    for number, (start, end) in spans(apply, name, messages, whole, tokenizer.eos_token or "").items():
        turn = whole[start:end].rstrip()
        if turn.endswith(marks):  # a line break after the mark that ends a turn is the template's
            end = start + len(turn)
        inside = [index for index, (a, b) in enumerate(offsets) if start <= a < b <= end]
        if not inside:
            raise ValueError(f"no token of message {number} (assistant) is left to train on")
        for index in inside:
            mask[index] = True
    return Chat(tokens, mask)


def special(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the special tokens of a `transformers` tokenizer."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple({*tokenizer.all_special_tokens, *added})


def opening(render: Callable[[Messages, bool], str], first: Mapping[str, Any], whole: str) -> str:
    """What stands before a turn of the assistant that opens a conversation: up to the end of the prompt that
    is written for a next one, of which nothing was said; "" where that is not found.
    """
    alone = render([first], False)
    prompt = render([first], True).removeprefix(alone)
    return whole[: whole.find(prompt) + len(prompt)] if prompt and prompt in whole else ""


def spans(
    render: Callable[[Messages, bool], str], name: str, messages: Messages, whole: str, eos: str
) -> dict[int, tuple[int, int]]:
    """{number of an assistant's message: (start, end) of it in the text `whole`}.

    `render(messages, add_generation_prompt)` gives text. Some templates write the tokenizer's end token
    `eos` after the last turn, whichever it is: it belongs to the turn only there. Some write the last turn
    otherwise than earlier ones (Qwen3 with an empty thought): then an earlier turn ends with the content and
    what followed it when it was the last.

    Raises: ValueError where the prompt of a turn is no prefix, or its end is not found.
    """
    found = {}
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        content = message.get("content")
        content = content.strip() if isinstance(content, str) else ""
        if not content and not message.get("tool_calls"):
            raise ValueError(f"message {number} (assistant) is empty")
        prompt = render(messages[:number], True) if number else opening(render, message, whole)
        last = whole if number == len(messages) - 1 else render(messages[: number + 1], False)
        ends = [
            len(text) for text in (last, last.removesuffix(eos)) if whole.startswith(text) and len(text) > 0
        ]
        if not ends and content and content in last:
            turn = last[last.rindex(content) :].removesuffix(eos)
            ends = [whole.find(turn, len(prompt)) + len(turn)] if turn in whole[len(prompt) :] else []
        if not prompt or not whole.startswith(prompt) or not ends or ends[0] <= len(prompt):
            raise ValueError(
                f"the chat template of {name} renders the prompt of message {number} (assistant) otherwise "
                "than the whole conversation, so which tokens to train on cannot be told: mark them with "
                "{% generation %} in a template of your own and pass it as chat_template"
            )
        found[number] = len(prompt), ends[0]
    return found


def encode(tokenizer: Any, name: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a rendered conversation and the (start, end) of each in it."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name} has no tokenizer.json, so where its tokens lie in a conversation is not known: "
            "convert it with transformers, or use a template with {% generation %}"
        )
    result = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(result["input_ids"]), [tuple(pair) for pair in result["offset_mapping"]]
