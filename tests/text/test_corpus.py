"""`text.Corpus`: what of files is learnt, what is held out, in which tokens; and how it fails."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from rljax import pretrain, sft, text
from rljax.models import huggingface
from rljax.models.seq2seq import Seq2SeqConfig, seq2seq
from rljax.text.corpus import told
from rljax.text.data import Packed, Pairs
from rljax.types import Task

FIXTURE = Path(__file__).parents[1] / "models" / "fixtures" / "llama"
SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "length": 8, "batch_size": 2, "chunk": 4}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"{number:02d}", "completion": f"{number:02d}"[::-1]}


def folder(where: Path, letters: str = "0123456789") -> Path:
    """A checkpoint of 40 tokens with a tokenizer."""
    shutil.copytree(FIXTURE, where)
    text.character_tokenizer(letters).save(where)
    return where


def decoded(task: Task, tokens: Any) -> str:
    return task.tokenizer.decode(np.asarray(tokens).tolist())


def test_the_end_of_a_text_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "alphabet.txt"
    path.write_text("abcdefghijklmnopqrst" * 5)
    task = pretrain.read(text.Corpus(path), pretrain.Config(**SMALL))
    assert decoded(task, task.learn) + decoded(task, task.held_out) == path.read_text()
    assert len(task.held_out) == 10
    assert (task.name, task.vocab_size) == ("alphabet", 22)
    assert (task.params, task.model) == (None, None)


def test_documents_of_pretraining_are_joined_by_the_end_token(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"text": "ab"}, {"text": "c"}, pair(12)])
    second = write(tmp_path / "b.jsonl", [{"text": "x"}])
    corpus = text.Corpus([first, second], held_out=second)
    task = pretrain.read(corpus, pretrain.Config(**SMALL))
    assert decoded(task, task.learn) == "ab<eos>c<eos>1221<eos>x"
    assert decoded(task, task.held_out) == "x"
    assert task.name == "a+1"


def test_the_last_records_are_held_out_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [*map(pair, range(19)), {"prompt": "1"}, pair(19)])
    config = sft.Config(**SMALL)
    with pytest.warns(UserWarning, match=r"pairs\.jsonl:20: missing key completion"):
        task = sft.read(text.Corpus(path), config)
    said = [decoded(task, rows.tokens[rows.segments > 0]) for rows in (task.learn, task.held_out)]
    assert said[1] == "1881<eos>1991<eos>"
    assert said[0].startswith("0000<eos>0110<eos>")
    assert said[0].endswith("1771<eos>")
    assert isinstance(task.learn, Packed)
    assert task.learn.tokens.shape[1] == 8
    learnt = decoded(task, task.held_out.tokens[task.held_out.mask])
    assert learnt == "81<eos>91<eos>"
    write(path, list(map(pair, range(20))))
    every = sft.read(text.Corpus(path, loss="all", held_out_fraction=0.5), config)
    assert len(every.held_out.tokens) == 10
    assert decoded(every, every.held_out.tokens[0]) == "1001<eos><pad><pad><pad>"
    assert every.held_out.mask[0].tolist() == [False, True, True, True, True, False, False, False]


def test_a_model_brings_its_tokens_and_parameters(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", list(map(pair, range(20))))
    model = folder(tmp_path / "model")
    config = sft.Config(**SMALL, dtype="bfloat16")
    task = sft.read(text.Corpus(path, model=model), config)
    assert task.vocab_size == 40
    assert task.model is not None
    assert task.model.config.dtype == np.dtype("bfloat16")
    assert task.model.config.param_dtype == np.float32
    loaded = text.load_pretrained(model)
    np.testing.assert_array_equal(task.params["embedding"], loaded.params["embedding"])
    assert task.generation == loaded.generation
    result = rljax.train(
        "sft", text.Corpus(path, model=model), {**SMALL, "train": "lora"}, steps=32, progress=False
    )
    assert result.summary["loss"]["mean"] > 0
    assert set(result.states.params) == {"layer_0", "layer_1", "layer_2"}


def test_an_encoder_decoder_reads_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", list(map(pair, range(20))))
    config = Seq2SeqConfig(40, 8, 16, 2, 1, 1, head_dim=4)
    model = seq2seq(config)
    where = tmp_path / "t5"
    huggingface.save(where, model, model.init(jax.random.key(0)))
    text.character_tokenizer("0123456789").save(where)
    length = 2 * SMALL["length"]  # half of a row is of the prompt, half of the completion
    sizes = sft.Config(**SMALL | {"length": length})
    task = sft.read(text.Corpus(path, model=where), sizes)
    assert isinstance(task.learn, Pairs)
    assert task.learn.prompt.shape == task.learn.completion.shape == (18, length // 2)
    assert decoded(task, task.held_out.completion[1][task.held_out.mask[1]]) == "91<eos>"
    assert bool(task.held_out.valid[0, 0])  # padded on the right
    own = sft.read(text.Corpus(path, held_out=path, model=where), sizes)
    assert own.held_out.prompt.shape == (20, length // 2)
    of_config = sft.read(text.Corpus(path), sizes.replace(architecture="t5"))
    assert isinstance(of_config.learn, Pairs)
    with pytest.raises(ValueError, match=f"length = {length - 1}: must be even"):
        sft.read(text.Corpus(path, model=where), sizes.replace(length=length - 1))
    with pytest.raises(ValueError, match="stream = True: is of packed rows"):
        sft.read(text.Corpus(path, held_out=path, model=where, stream=True), sizes)


def test_what_is_recorded_makes_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", list(map(pair, range(20))))
    folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    corpus = text.Corpus("a.jsonl", model="model", tokenizer="some/repository", held_out_fraction=0.2)
    told = json.loads(json.dumps(corpus.recorded()))
    assert told["data"] == [str(tmp_path / "a.jsonl")]
    assert told["model"] == str(tmp_path / "model")
    assert told["tokenizer"] == "some/repository"
    again = text.Corpus(**told)
    assert replace(again, data=corpus.data, model=corpus.model) == corpus


def test_a_sweep_over_the_length_reads_the_rows_again(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", list(map(pair, range(20))))
    found = rljax.sweep(
        "sft", text.Corpus(path), {"length": [8, 16]}, SMALL, steps=32, out=tmp_path / "sweep", progress=False
    )
    assert [member["length"] for member in found.members] == [8, 16]
    assert all(member["loss"] > 0 for member in found.members)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data": ()}, "without data"),
        ({"loss": "al"}, "did you mean all"),
        ({"documents": "word"}, "documents"),
        ({"held_out_fraction": 0.0}, "held_out_fraction = 0"),
        ({"data": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"data": "{where}/a.csv"}, "must end in one of"),
        ({"held_out": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"tokenizer": "./nowhere"}, "./nowhere: no such file or folder"),
        ({"model": "./nowhere"}, "./nowhere"),
        ({"model": "{where}/wide"}, "but the model's vocabulary is 40"),
        ({"data": "{where}/a.txt", "model": "{where}/narrow"}, "is not in the character tokenizer"),
        ({"data": "{where}/one.jsonl"}, "one.jsonl: 1 record: nothing is left to learn or to hold out"),
        ({"data": "{where}/short.txt"}, "short.txt: 2 characters: nothing is left"),
        ({"data": "{where}/empty.txt"}, "empty.txt: no text"),
        ({"data": "{where}/chat.jsonl"}, "chat.jsonl: conversations need a chat template: name a tokenizer"),
        ({"data": "{where}/bad.jsonl"}, "no usable text in {where}/bad.jsonl: 1 of 1 entries left out"),
        ({"data": "{where}/keys.jsonl"}, "keys.jsonl: no text, prompt or completion"),
    ],
)
def test_what_is_wrong_is_one_line(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    (tmp_path / "a.txt").write_text("abc" * 100)
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "empty.txt").write_text("")
    write(tmp_path / "one.jsonl", [pair(1)])
    (tmp_path / "bad.jsonl").write_text("{")
    write(tmp_path / "keys.jsonl", [{"body": "a"}])
    write(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    write(tmp_path / "pairs.jsonl", list(map(pair, range(20))))
    if "wide" in str(fields):
        folder(tmp_path / "wide", letters="".join(map(chr, range(48, 100))))
    if "narrow" in str(fields):
        folder(tmp_path / "narrow")
    filled = {k: v.format(where=tmp_path) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sft.read(text.Corpus(**{"data": tmp_path / "pairs.jsonl"} | filled), sft.Config(**SMALL))
    assert says.format(where=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pretraining_has_no_rows_to_pack_and_no_more_positions_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 100)
    with pytest.raises(ValueError, match=r"Corpus\.packing = 'sequential': is of sft"):
        pretrain.read(text.Corpus(path, packing="sequential"), pretrain.Config(**SMALL))
    corpus = text.Corpus(path, model=folder(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"pretrain.Config.length = 65: must be at most 64, the positions"):
        pretrain.read(corpus, pretrain.Config(**SMALL).replace(length=65))
    with pytest.raises(ValueError, match=r"length = 200: must be at most the 100 tokens of held_out"):
        rljax.train("pretrain", text.Corpus(path), {**SMALL, "length": 200}, progress=False)


def test_a_corpus_is_for_what_learns_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ppo needs an environment; a is a Corpus"):
        rljax.train("ppo", text.Corpus(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("abc" * 100)
    with pytest.raises(ValueError, match="target_return is of what is rewarded: pretrain is judged by loss"):
        rljax.train("pretrain", text.Corpus(tmp_path / "a.txt"), SMALL, target_return=1.0, progress=False)
    with pytest.raises(ValueError, match="no task is named 'CartPole-v1': there are reverse, sort"):
        rljax.train("sft", "CartPole-v1")


def test_what_is_dropped_and_cut_is_counted(tmp_path: Path) -> None:
    """Of 8 documents to learn, two pairs do not fit into 16 tokens, and a text of 40 becomes three pieces."""
    pair = lambda size: json.dumps({"prompt": "a" * size, "completion": "b"})
    lines = [pair(3)] * 5 + [pair(30)] * 2 + [json.dumps({"text": "ab" * 20})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text(pair(3))
    corpus = text.Corpus(tmp_path / "a.jsonl", held_out=tmp_path / "b.jsonl")
    with pytest.warns(UserWarning, match="2 of 8 documents dropped"):
        task = sft.read(corpus, sft.Config(**{**SMALL, "length": 16}))
    assert task.counts == {
        "learn": {"documents": 8, "split": 1, "dropped": 2},
        "held_out": {"documents": 1, "split": 0, "dropped": 0},
    }
    said = "learn: 8 documents, 2 dropped as longer than a row, 1 cut; held-out: 1 document, 0 dropped as "
    assert told(task.counts) == said + "longer than a row, 0 cut"
