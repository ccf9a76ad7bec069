"""The commands for language models, on text and on the small checkpoints of tests/models/fixtures."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from rljax import text
from rljax.cli import language, main

FIXTURE = Path(__file__).parent / "models" / "fixtures" / "llama"
STORIES = Path(rljax.__file__).parents[2] / "shared" / "data" / "models" / "stories260K"
LETTERS = "abcdefghijklmnopqrstuvwxyz .,;:!?'-0123456789"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer of characters, as many as its vocabulary has room for."""
    found = tmp_path / "model"
    shutil.copytree(FIXTURE, found)
    size = json.loads((found / "config.json").read_text())["vocab_size"]
    text.character_tokenizer(LETTERS[: size - 2]).save(found)
    return found


def test_generate_continues_the_prompt_with_what_the_library_gives(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(folder), "--prompt", "abc", "--max-new-tokens", "5", "--temperature", "0"]
    assert main(words) == 0
    model, params, tokenizer, generation = text.load_pretrained(folder)
    prompt, valid = text.data.pad_prompts([tokenizer.encode("abc")])
    settings = text.Sampling(temperature=0.0, max_new_tokens=5)
    done = text.generate(model, params, jax.random.key(0), prompt, valid, settings, generation.stop_ids)
    tokens = language.without(np.asarray(done.tokens)[0].tolist(), generation.stop_ids)
    told = "abc" + tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert capsys.readouterr().out == told + "\n"


def test_convert_writes_a_folder_that_gives_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = folder.parent / "new"
    assert main(["convert", str(folder), str(new)]) == 0
    assert capsys.readouterr().out.strip() == str(new)
    one, other = text.load_pretrained(folder), text.load_pretrained(new)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.tokenizer.encode("abc") == one.tokenizer.encode("abc")
    assert main(["convert", str(folder), str(new)]) == 2
    assert "already there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["./nowhere"], "nowhere"),
        (["{folder}", "--prompt", "ABC"], "is not in the character tokenizer"),
        (["{folder}", "--prompt", "abc", "--max-new-tokens", "100000"], "positions"),
        (["{folder}", "--prompt", "abc", "--temperature", "-1"], "temperature"),
        (["{folder}", "--prompt", "abc", "--top-p", "2"], "top_p"),
        (["{folder}", "--prompt", "abc", "--top-k", "-1"], "top_k"),
    ],
)
def test_misuse_is_one_line_and_status_2(
    words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(folder=folder) for word in words]
    assert main(["generate", "--max-new-tokens", "4", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert "\n" not in told


def test_without_a_prompt_it_begins_with_the_mark_of_a_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folder), "--max-new-tokens", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_a_prompt_is_what_a_user_says_where_there_is_a_template(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers: the prompt is rendered with the prompt of an answer, and not printed."""
    found = text.load_pretrained(folder)
    asked: list[list[int]] = []
    beyond = found.tokenizer.vocab_size  # an id that a padded vocabulary has and a tokenizer has not

    def streamed(model: Any, params: Any, key: Any, prompt: list[int], settings: Any, stops: Any) -> Any:
        asked.append(prompt)
        given.append(settings)
        return iter([*found.tokenizer.encode("o"), beyond, *found.tokenizer.encode("k")])

    given: list[Any] = []
    chat = lambda messages, add_generation_prompt: text.Chat(
        found.tokenizer.encode(f"u.{messages[0]['content']}.a" if add_generation_prompt else ""), []
    )
    generation = found.generation._replace(do_sample=True, temperature=0.5, top_k=3, top_p=1.0)
    talking = found._replace(
        tokenizer=found.tokenizer._replace(chat=chat, template=True), generation=generation
    )
    monkeypatch.setattr(language, "load", lambda *_: talking)
    monkeypatch.setattr(text, "stream", streamed)
    say = lambda *words: (main(["generate", str(folder), "--prompt", "hi", *words]), capsys.readouterr().out)
    assert say() == (0, "ok\n")
    assert say("--chat", "no", "--temperature", "2") == (0, "hiok\n")
    encode = found.tokenizer.encode
    assert asked == [encode("u.hi.a"), encode("hi")]
    assert [(float(each.temperature), each.top_k, each.top_p) for each in given] == [
        (0.5, 3, None),
        (2, 3, None),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train dpo --data pairs.jsonl", "which task? Add --task preferences"),
        ("train grpo", "which task? Add --task NAME"),
        ("evaluate run --data pairs.jsonl", "--data is what a --task reads"),
    ],
)
def test_a_task_that_is_missing_is_named(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert says in capsys.readouterr().err


def test_a_character_of_several_tokens_comes_whole() -> None:
    raw = "aé€b".encode()
    decode = lambda ids, skip_special_tokens=False: bytes(ids).decode(errors="replace")
    assert list(language.pieces(decode, [raw[0]], raw[1:])) == ["a", "é", "€", "b", ""]
    assert list(language.without([5, 6, 7], [6])) == [5]


def test_from_a_file_to_text_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ab.txt").write_text("ab" * 500)
    sizes = "--config.length 8 --config.hidden-size 16 --config.num-layers 1 --config.learning-rate 3e-2"
    assert main(f"train pretrain --data ab.txt --steps 5e4 --no-progress {sizes}".split()) == 0
    told = capsys.readouterr().out
    assert "pretrain on ab: 50,176 tokens per seed" in told
    assert "rljax generate runs/pretrain-ab" in told
    assert main(["generate", "runs/pretrain-ab", "--prompt", "aba", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "ababababa\n"  # the last token needs no position
    assert main(["evaluate", "runs/pretrain-ab"]) == 0
    assert "(1 seed × 12 held-out rows)" in capsys.readouterr().out
    assert main(["generate", "runs/pretrain-ab", "--prompt", "xyz"]) == 2
    assert "is not in the character tokenizer" in capsys.readouterr().err


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the weights of ../shared/data")
def test_the_real_weights_tell_the_known_story(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "Once upon a time", "--max-new-tokens", "60", "--temperature", "0"]
    assert main(["generate", str(STORIES), *words]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    )
