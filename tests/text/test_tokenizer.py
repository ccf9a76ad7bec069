"""Tokenizers against real vocabularies and their test strings, definitions, and files that are wrong."""

import functools
import gzip
import itertools
import json
import random
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rljax
from rljax import text
from rljax.text import huggingface
from rljax.text.data import examples
from rljax.text.llama2c_tokenizer import load_pieces, pieces_tokenizer, write_json
from rljax.text.tokenizer import choose_pad

SHARED = Path(rljax.__file__).parents[2] / "shared" / "data"
REAL = SHARED / "tokenizers"
real = pytest.mark.skipif(not REAL.is_dir(), reason="real tokenizers lie in ../shared/data, which is absent")
STORIES = SHARED / "models" / "stories260K"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello! 2+2=4"},
    {"role": "user", "content": "and 3+3?"},
    {"role": "assistant", "content": "6"},
]
PROSE = "the cat sat on the mat, and 12 other cats sat too; who knows? assistant user system think "


def train(folder: Path, special: list[str], **names: str) -> Path:
    """A byte-level BPE of 300 tokens, made here, as tokenizer.json and tokenizer_config.json."""
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([PROSE] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if names:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML}
    return train(tmp_path_factory.mktemp("chatml"), SPECIAL, **names)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The real tokenizers as their publishers lay them out."""

    @functools.cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        files = {
            "gpt2-json": {"tokenizer.json": "gpt2/tokenizer.json.gz"},
            "gpt2-merges": {"vocab.json": "gpt2/encoder.json", "merges.txt": "gpt2/vocab.bpe"},
            "qwen2": {
                "vocab.json": "qwen2/vocab.json.gz",
                "merges.txt": "qwen2/merges.txt.gz",
                "tokenizer_config.json": "qwen2/tokenizer_config.json",
            },
            "minimind": {name: f"minimind/{name}" for name in ("tokenizer.json", "tokenizer_config.json")},
        }[name]
        for target, source in files.items():
            raw = (REAL / source).read_bytes()
            (folder / target).write_bytes(gzip.decompress(raw) if source.endswith(".gz") else raw)
        return folder

    return make


@real
@pytest.mark.parametrize(
    ("name", "vectors", "size", "end"),
    [
        ("gpt2-json", "gpt-2", 50257, 50256),
        ("gpt2-merges", "gpt-2", 50257, 50256),
        ("qwen2", "qwen2", 151646, 151645),
        ("qwen2", "deepseek-r1-qwen", 151646, 151645),  # the same vocabulary under another name
    ],
)
def test_real_vocabularies_agree_on_every_test_string(unpacked, name, vectors, size, end) -> None:
    tokenizer = text.load_tokenizer(unpacked(name))
    file = REAL / "test_vectors" / vectors
    strings = file.with_suffix(".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in file.with_suffix(".out").read_text().split("\n")]
    assert len(strings) == len(ids) == 47
    assert [tokenizer.encode(string) for string in strings] == ids
    assert [tokenizer.decode(row) for row in ids] == strings
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (size, end)
    assert tokenizer.pad_id != tokenizer.eos_id


@real
def test_saved_tokenizers_load_again(unpacked, tmp_path) -> None:
    for name in ("gpt2-merges", "minimind"):
        first = text.load_tokenizer(unpacked(name))
        first.save(tmp_path / name)
        again = text.load_tokenizer(tmp_path / name)
        for string in ("Once upon a time", "  é\n\n\tx == 12", "<|im_start|>user"):
            assert again.encode(string) == first.encode(string)
        assert again[1:5] == first[1:5]  # size, pad, eos, bos
        if name == "minimind":
            assert again.chat(TALK) == first.chat(TALK)


# --- pad ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "special", "pad", "unk", "eos", "right"),
    [
        ({"a": 0, "<p>": 1, "</s>": 2}, [1, 2], 1, None, 2, 1),  # its own
        ({"a": 0, "<pad>": 1, "</s>": 2}, [1, 2], 2, None, 2, 1),  # its own is the end: by name
        ({"<|reserved_special_token_0|>": 3, "<|finetune_right_pad_id|>": 4, "e": 0}, [3, 4], None, 0, 0, 4),
        ({"<|reserved_special_token_0|>": 3, "e": 0, "u": 1}, [0, 3], None, 1, 0, 3),
        ({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, [0, 1, 2], None, 0, 2, 0),  # Llama 2
        ({"!": 0, '"': 1, "<|endoftext|>": 2}, [2], 2, 2, 2, 0),  # GPT-2
        ({"<|endoftext|>": 0, "!": 1}, [0], None, 0, 0, 1),
        ({"a": 0, "b": 1, "padding": 2, "[x": 3}, [], None, None, 0, 1),  # words are no marks
    ],
)
def test_pad_is_never_the_end_and_inside_the_vocabulary(vocabulary, special, pad, unk, eos, right) -> None:
    assert choose_pad(vocabulary, special, pad, unk, eos) == right


def test_a_vocabulary_of_the_end_alone_has_no_pad() -> None:
    with pytest.raises(ValueError, match="a vocabulary of 1 tokens"):
        choose_pad({"</s>": 0}, [0], 0, 0, 0)


def test_pad_declared_as_the_end_is_replaced(chatml) -> None:
    tokenizer = text.load_tokenizer(chatml)
    assert tokenizer.eos_id == 2
    assert tokenizer.pad_id not in (0, 1, 2)
    assert tokenizer.pad_id < tokenizer.vocab_size


# --- characters --------------------------------------------------------------------------------------------

ODD = "ab \n\té🦙\ud800\u0000"
letters = text.character_tokenizer(ODD)


@given(st.text(alphabet=ODD))
def test_characters_round_trip(string: str) -> None:
    ids = letters.encode(string)
    assert len(ids) == len(string)
    assert letters.decode(ids) == string
    assert all(2 <= token < letters.vocab_size for token in ids)


def test_characters_do_not_depend_on_the_order_of_the_text() -> None:
    first, second = text.character_tokenizer("banana"), text.character_tokenizer({"n", "a", "b"})
    assert first.encode("nab") == second.encode("nab") == [4, 2, 3]
    assert (first.vocab_size, first.pad_id, first.eos_id, first.bos_id) == (5, 0, 1, None)


def test_characters_of_a_list_keep_their_order(tmp_path) -> None:
    given = text.character_tokenizer(list("nba nb"), unknown="replace")
    assert given.encode("ban x") == [4, 5, 3, 6, 2]
    given.save(tmp_path)
    assert text.load_tokenizer(tmp_path).encode("ban x") == [4, 5, 3, 6, 2]
    assert text.character_tokenizer(set("nba ")).encode("ban") == text.character_tokenizer("nba ").encode(
        "ban"
    )


@pytest.mark.parametrize("unknown", ["error", "replace"])
def test_characters_are_saved_exactly(tmp_path, unknown) -> None:
    first = text.character_tokenizer(ODD, unknown=unknown)
    first.save(tmp_path)
    again = text.load_tokenizer(tmp_path)
    assert again[1:5] == first[1:5]
    assert again.encode(ODD) == first.encode(ODD)
    assert again.name == first.name


def test_unknown_characters_are_named_or_replaced() -> None:
    with pytest.raises(ValueError, match=r"character 'x' at place 2 is not in the character tokenizer of 2"):
        text.character_tokenizer("ab").encode("abxb")
    replacing = text.character_tokenizer("ab", unknown="replace")
    assert replacing.encode("axb") == [3, 2, 4]
    assert replacing.decode([3, 2, 4, 1, 0]) == "a<unk>b<eos><pad>"
    assert replacing.decode([3, 2, 4, 1, 0], skip_special_tokens=True) == "ab"


def test_character_tokenizers_refuse_what_is_no_character(tmp_path) -> None:
    with pytest.raises(ValueError, match="no characters"):
        text.character_tokenizer("")
    with pytest.raises(ValueError, match="'ab' is not one character"):
        text.character_tokenizer(["ab"])
    with pytest.raises(ValueError, match="must be 'error' or 'replace'"):
        text.character_tokenizer("ab", unknown="ignore")  # type: ignore
    with pytest.raises(TypeError, match="takes a string, not bytes"):
        letters.encode(b"ab")
    with pytest.raises(ValueError, match="id 11 is not in the vocabulary of the character tokenizer of 9"):
        letters.decode([2, 11])
    with pytest.raises(ValueError, match="has no chat template"):
        letters.chat(TALK)
    for content in ("{", "[1]", '{"characters": "ab"}', '{"characters": 3, "unknown": "error"}'):
        (tmp_path / "character_tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="is no saved character tokenizer"):
            text.load_tokenizer(tmp_path)


# --- llama2.c ----------------------------------------------------------------------------------------------


def pieces_of(seed: int) -> tuple[list[bytes], list[float]]:
    """Marks, bytes, characters, and unions of them with random scores, some equal."""
    chance = random.Random(seed)
    marks = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    words = {letter.encode() for letter in "abcé "}
    while len(words) < 60:
        words.add(b"".join(chance.choices(sorted(words), k=2)))
    found = sorted(words)
    return marks + found, [0.0] * len(marks) + [chance.choice([-1.0, -2.0, -3.0, -4.5]) for _ in found]


def slow_merge(string: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """The definition: look at all neighbours, join the best (the leftmost of equals), begin again."""
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces)))}
    tokens = []
    for letter in " " + string:
        raw = letter.encode()
        tokens += [ids[raw]] if raw in ids else [3 + byte for byte in raw]
    while True:
        unions = [ids.get(pieces[a] + pieces[b]) for a, b in itertools.pairwise(tokens)]
        there = [place for place, union in enumerate(unions) if union is not None]
        if not there:
            return tokens
        best = max(there, key=lambda place: (scores[unions[place]], -place))
        tokens[best : best + 2] = [unions[best]]


@given(st.integers(0, 5), st.text(alphabet="aaabbcé xü", min_size=1, max_size=40))
def test_pieces_merge_as_defined(seed: int, string: str) -> None:
    pieces, scores = pieces_of(seed)
    tokenizer = pieces_tokenizer(pieces, scores, "toy")
    ids = tokenizer.encode(string)
    assert ids == slow_merge(string, pieces, scores)
    assert tokenizer.decode(ids) == string
    assert tokenizer.encode(string, add_special_tokens=True) == [1, *ids]
    assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == string


def test_pieces_are_saved_as_llama2c_reads_them(tmp_path) -> None:
    pieces, scores = pieces_of(0)
    first = pieces_tokenizer(pieces, scores, "toy")
    first.save(tmp_path)
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    assert file.name == f"tok{len(pieces)}.bin"
    assert struct.unpack_from("<i", raw)[0] == max(map(len, pieces))
    assert raw[4:] == b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(pieces, scores, strict=True)
    )
    assert text.load_tokenizer(tmp_path).encode("abba é ü") == first.encode("abba é ü")
    assert (first.pad_id, first.eos_id, first.bos_id) == (0, 2, 1)
    shutil.copy(file, tmp_path / "tok2.bin")
    with pytest.raises(ValueError, match=r"several tokenizers \(tok2.bin, tok"):
        text.load_tokenizer(tmp_path)


def test_pieces_are_written_for_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pieces, scores = pieces_of(0)
    scores = [score - token / 1e4 for token, score in enumerate(scores)]  # no two equal: no ties to break
    first = pieces_tokenizer(pieces, scores, "toy")
    first.save(tmp_path)
    write_json(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = text.load_tokenizer(tmp_path)
    for string in ("abba é ü", "a", " cab  bac", "ccabaacb éabc"):
        ids = first.encode(string, add_special_tokens=True)
        assert theirs.encode(string) == again.encode(string, add_special_tokens=True) == ids
        assert again.decode(ids[1:]) == string
    assert (again.eos_id, again.bos_id, again.vocab_size) == (2, 1, len(pieces))


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K lies in ../shared/data, which is absent")
def test_the_tokenizer_of_stories260k() -> None:
    tokenizer = text.load_tokenizer(STORIES)
    assert tokenizer.vocab_size == 512
    assert tokenizer.name == load_pieces(STORIES / "tok512.bin").name
    # 403 407 261 378: how run.c begins its known story
    assert tokenizer.encode("Once upon a time", add_special_tokens=True) == [1, 403, 407, 261, 378]
    for string in ("Lily didn't want to help her mom, so she", "Zoë 🦙\n\n  x", "", " ", "  a"):
        assert tokenizer.decode(tokenizer.encode(string)) == string
    with pytest.raises(ValueError, match="not Unicode"):
        tokenizer.encode("\ud800")


# --- trained byte pairs ------------------------------------------------------------------------------------

LINES = ["the cat sat on the mat", "the hat of the cat", "that cat sat, and sat", "", "un été"] * 2


@pytest.fixture(scope="module")
def trained() -> text.Tokenizer:
    pytest.importorskip("transformers")
    return text.byte_pair_tokenizer(iter(LINES), 280)


@given(st.lists(st.one_of(st.text(), st.sampled_from(["the cat", "<|pad|>", "<|endoftext|>", "é"]))))
def test_byte_pairs_round_trip(trained: text.Tokenizer, parts: list[str]) -> None:
    string = "".join(parts)
    ids = trained.encode(string)
    assert trained.decode(ids) == string
    assert len(ids) <= len(string.encode())
    assert all(0 <= token < 280 for token in ids)
    assert trained.encode(string, add_special_tokens=True) == ids


def test_byte_pairs_have_marks_and_unions(trained: text.Tokenizer) -> None:
    assert trained[:5] == ("the byte-pair tokenizer of 280 tokens", 280, 0, 1, None)
    assert trained.decode([*trained.encode("cat"), 1, 0]) == "cat<|endoftext|><|pad|>"
    assert trained.decode([*trained.encode("cat"), 1, 0], skip_special_tokens=True) == "cat"
    assert len(trained.encode("the cat sat")) == 3
    assert len(trained.encode("qu")) == 2  # letters that it never read
    with pytest.raises(ValueError, match="has no chat template"):
        trained.chat(TALK)


def test_every_union_is_of_the_most_frequent_pair(trained: text.Tokenizer, tmp_path) -> None:
    """The definition, over words that begin with their space; of equals any may be the first."""
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert [content["vocab"]["".join(merge)] for merge in content["merges"]] == list(range(258, 280))
    found = [word for line in LINES for word in re.findall(r" ?[a-zé]+| ?,", line)]
    words = [list(word.encode().decode("latin-1").replace(" ", "Ġ")) for word in found]
    for pair in content["merges"]:
        counts = Counter(two for word in words for two in itertools.pairwise(word))
        assert counts[tuple(pair)] == max(counts.values())
        for word in words:
            for place in range(len(word) - 1, 0, -1):
                if word[place - 1 : place + 1] == pair:
                    word[place - 1 : place + 1] = ["".join(pair)]


def test_byte_pairs_depend_on_the_texts_alone(trained: text.Tokenizer, tmp_path) -> None:
    """Not on their order, nor on the hashes of one process."""
    again = text.byte_pair_tokenizer(sorted(LINES), 280)
    for tokenizer, folder in ((trained, "first"), (again, "again")):
        tokenizer.save(tmp_path / folder)
    code = f"from rljax import text; text.byte_pair_tokenizer({LINES}, 280).save({str(tmp_path / 'other')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    files = [(tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("first", "again", "other")]
    assert files[0] == files[1] == files[2]


def test_trained_byte_pairs_are_saved_exactly(trained: text.Tokenizer, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    again = text.load_tokenizer(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again[1:5] == trained[1:5]
    for string in ("the cat sat", "  é🦙\n\n\tx<|endoftext|>", "", *LINES):
        ids = trained.encode(string)
        assert again.encode(string) == theirs.encode(string) == ids
        assert again.decode(ids) == string
        assert again.decode([1, *ids], True) == trained.decode(ids, True)


@pytest.mark.parametrize(
    ("texts", "size", "kind", "complaint"),
    [
        ([], 300, ValueError, "no texts to learn from"),
        (["", ""], 300, ValueError, "no texts to learn from"),
        (["ab", "c\ud800"], 300, ValueError, r"text 1 is not Unicode at place 1: '\\ud800'"),
        (["ab", b"cd"], 300, TypeError, "text 1 is bytes, must be a string"),
        ("the cat", 300, ValueError, "texts is one string: pass a list"),
        (["ab"], 257, ValueError, "vocab_size = 257: must be an integer of at least 258"),
        (["ab"], 300.0, ValueError, r"vocab_size = 300\.0: must be an integer"),
        (["ab ab"], 300, ValueError, "vocab_size = 300: the texts have pairs for 260 tokens; pass more"),
    ],
)
def test_what_byte_pairs_cannot_be_learnt_from(texts, size, kind, complaint) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(kind, match=complaint) as caught:
        text.byte_pair_tokenizer(texts, size)
    assert "\n" not in str(caught.value)


def test_byte_pairs_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "rljax\[text\]"'):
        text.byte_pair_tokenizer(LINES, 280)


# --- chat templates ----------------------------------------------------------------------------------------


def said(tokenizer: text.Tokenizer, chat: text.Chat) -> list[str]:
    """The unmasked runs of tokens as texts."""
    runs: list[list[int]] = [[]]
    for token, flag in zip(*chat, strict=True):
        if flag:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


CHAT_TEMPLATES = {
    "Qwen-Qwen2.5-7B-Instruct": ["Hello! 2+2=4<|im_end|>", "6<|im_end|>"],
    "google-gemma-2-2b-it": ["Hello! 2+2=4<end_of_turn>\n", "6<end_of_turn>\n"],
    "meta-llama-Llama-3.1-8B-Instruct": ["Hello! 2+2=4<|eot_id|>", "6<|eot_id|>"],
    "microsoft-Phi-3.5-mini-instruct": ["Hello! 2+2=4<|end|>\n", "6<|end|>\n<|im_end|>"],
    "": ["Hello! 2+2=4<|im_end|>", "6<|im_end|>"],  # MiniMind's own
}


@real
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_real_templates_unmask_what_the_assistant_says_and_nothing_else(unpacked, name) -> None:
    template = REAL / "chat_templates" / f"{name}.jinja" if name else None
    tokenizer = text.load_tokenizer(unpacked("minimind"), chat_template=template)
    chat = tokenizer.chat(TALK)
    assert said(tokenizer, chat) == CHAT_TEMPLATES[name]
    # what is trained on follows exactly the tokens that generation will see
    for number in (1, 3):
        prompt = tokenizer.chat(TALK[:number], add_generation_prompt=True)
        assert chat.tokens[: len(prompt.tokens)] == prompt.tokens
        assert chat.mask[len(prompt.tokens)]
        assert not chat.mask[len(prompt.tokens) - 1]
        assert not any(prompt.mask)
    silent = tokenizer.decode([token for token, flag in zip(*chat, strict=True) if not flag])
    assert "Hi there" in silent
    assert "and 3+3?" in silent
    assert "2+2" not in silent


@real
def test_a_template_that_prompts_otherwise_than_it_renders_is_refused(unpacked) -> None:
    template = REAL / "chat_templates" / "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"
    tokenizer = text.load_tokenizer(unpacked("minimind"), chat_template=template)
    with pytest.raises(ValueError, match=r"prompt of message 1 .* mark them with \{% generation %\}"):
        tokenizer.chat(TALK)  # it prompts with <think>, and drops thoughts from what was said
    assert tokenizer.decode(tokenizer.chat(TALK[:1], add_generation_prompt=True).tokens).endswith("<think>\n")


@real
def test_roles_and_arguments_reach_the_template(unpacked) -> None:
    gemma = REAL / "chat_templates" / "google-gemma-2-2b-it.jinja"
    tokenizer = text.load_tokenizer(unpacked("minimind"), chat_template=gemma)
    with pytest.raises(ValueError, match=r"failed on roles \(system, user\): System role not supported"):
        tokenizer.chat([{"role": "system", "content": "x"}, TALK[0]])
    with pytest.raises(ValueError, match=r"failed on roles \(user, user\): Conversation roles must"):
        tokenizer.chat([TALK[0], TALK[0]])
    thinking = text.load_tokenizer(unpacked("minimind"))
    prompt = thinking.chat(TALK[:1], add_generation_prompt=True, open_thinking=True)
    assert thinking.decode(prompt.tokens).endswith("assistant\n<think>\n")


def test_marks_of_the_template_are_taken(chatml) -> None:
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}"
    )
    tokenizer = text.load_tokenizer(chatml, chat_template=marked)
    chat = tokenizer.chat(TALK)
    assert said(tokenizer, chat) == ["Hello! 2+2=4<|im_end|>", "6<|im_end|>"]
    assert chat.tokens == text.load_tokenizer(chatml).chat(TALK).tokens
    empty = CHATML + "{% generation %}{% endgeneration %}"
    with pytest.raises(ValueError, match="marks no token"):
        text.load_tokenizer(chatml, chat_template=empty).chat(TALK)


def test_a_last_turn_that_is_written_otherwise(chatml) -> None:
    """Qwen3's way: an empty thought before the last answer only."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = text.load_tokenizer(chatml, chat_template=template)
    right = ["Hello! 2+2=4<|im_end|>", "<think>\n\n</think>\n\n6<|im_end|>"]
    assert said(tokenizer, tokenizer.chat(TALK)) == right


def test_the_line_break_after_a_turn_is_the_templates_and_an_assistant_may_open(chatml) -> None:
    tokenizer = text.load_tokenizer(chatml)
    assert said(tokenizer, tokenizer.chat(TALK)) == ["Hello! 2+2=4<|im_end|>", "6<|im_end|>"]
    first = tokenizer.chat(TALK[1:])
    assert said(tokenizer, first) == ["Hello! 2+2=4<|im_end|>", "6<|im_end|>"]
    assert tokenizer.decode(first.tokens).startswith("<|im_start|>assistant\nHello!")
    assert tokenizer.template
    assert examples.turn_end(tokenizer) == tokenizer.encode("<|im_end|>")[0]


def test_tokens_are_those_of_transformers(chatml) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(chatml)
    right = theirs.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert text.load_tokenizer(chatml).chat(TALK).tokens == right


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        ("{% for m in %}", TALK, "failed on roles"),
        ("{{ messages[9].content.x }}", TALK, "failed on roles"),
        ("{{ raise_exception('no\nsuch\nrole') }}", TALK, "failed on roles .*: no such role$"),
        (CHATML, [TALK[0], {"role": "assistant", "content": " "}], r"message 1 \(assistant\) is empty"),
        (CHATML, [], "at least one"),
        (CHATML, "Hi", "must be a list"),
        (CHATML, TALK[0], "must be a list"),
        (CHATML, [{"content": "Hi"}], "message 0 must be"),
        (CHATML, [TALK[0], {"role": "assistant", "content": 3}], r"message 1 \(assistant\): content is int"),
        ("", TALK, "has no chat template"),
    ],
)
def test_a_template_that_fails_is_one_line(chatml, template, messages, complaint) -> None:
    tokenizer = text.load_tokenizer(chatml, chat_template=template)
    with pytest.raises(ValueError, match=complaint) as caught:
        tokenizer.chat(messages)
    assert "\n" not in str(caught.value)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_tokenizer_json_is_taken_as_it_stands(tmp_path, family) -> None:
    """Also beside a configuration whose family would split text in another way."""
    tokenizers = pytest.importorskip("tokenizers")
    train(tmp_path, SPECIAL)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    right = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = text.load_tokenizer(tmp_path)
    for string in ("the cat sat on 12345 mats", "\n\n\n a  b", "x's cat's  ", "<|im_start|>the"):
        assert tokenizer.encode(string) == right.encode(string).ids
        assert tokenizer.decode(tokenizer.encode(string)) == string
    # nothing names the end: the special token that ends texts of such vocabularies
    assert tokenizer.eos_id == right.token_to_id("<|endoftext|>")
    alone = text.load_tokenizer(tmp_path / "tokenizer.json")
    assert alone.encode("the cat") == tokenizer.encode("the cat")


def test_merges_without_a_configuration(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = train(tmp_path / "source", ["<|endoftext|>"])
    content = json.loads((source / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, content["merges"])))
    tokenizer = text.load_tokenizer(tmp_path)
    right = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    for string in ("the cat sat on 12345 mats", "\n\n\n a  b", "cat<|endoftext|>the"):
        assert tokenizer.encode(string) == right.encode(string).ids
    assert tokenizer.eos_id == right.token_to_id("<|endoftext|>")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"merges\.txt is missing"):
        text.load_tokenizer(tmp_path)


def test_decoding_cleans_nothing_up(chatml) -> None:
    tokenizer = text.load_tokenizer(chatml)
    for string in ("a , b . do n't !", "  two  spaces ", "é🦙"):
        assert tokenizer.decode(tokenizer.encode(string)) == string
    marked = [*tokenizer.encode("cat"), tokenizer.eos_id]
    assert tokenizer.decode(marked) == "cat<|im_end|>"
    assert tokenizer.decode(marked, skip_special_tokens=True) == "cat"


def test_what_is_no_text_and_no_id(chatml) -> None:
    tokenizer = text.load_tokenizer(chatml)
    with pytest.raises(ValueError, match="not Unicode"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError, match="takes a string, not list"):
        tokenizer.encode(["a", "b"])
    with pytest.raises(ValueError, match=f"id {tokenizer.vocab_size} is not in the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="id -1 is not"):
        tokenizer.decode([-1])


def test_a_vocabulary_larger_than_the_models_is_refused() -> None:
    tokenizer = text.character_tokenizer("abc")
    text.check_vocabulary(tokenizer, 5)
    text.check_vocabulary(tokenizer, 64)
    with pytest.raises(ValueError, match="ids up to 4 but the model's vocabulary is 4"):
        text.check_vocabulary(tokenizer, 4)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_corrupt_tokenizer_json_is_one_line(tmp_path, content) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="does not load: ") as caught:
        text.load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_files_are_one_line(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: needs tokenizer\.json"):
        text.load_tokenizer(tmp_path)
    for name in ("/no/such/folder", "./nowhere", "a/b/c", str(tmp_path / "x")):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            text.load_tokenizer(name)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"x\.txt is no tokenizer"):
        text.load_tokenizer(tmp_path / "x.txt")
    # transformers would make an empty Llama vocabulary of this
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        text.load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: none of tokenizer\.json"):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_sentence_pieces_without_the_package_say_what_to_install(tmp_path, monkeypatch, name) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(huggingface, "find_spec", lambda package: None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"SentencePiece model .{name}.: pip install .rljax"):
        text.load_tokenizer(tmp_path)


def test_a_sentence_piece_model_writes_as_its_own_library(tmp_path: Path) -> None:
    pieces = pytest.importorskip("sentencepiece", reason="needs the extra text")
    pytest.importorskip("transformers")
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat sat on the mat\na dog ran to the cat\nhello world of cats and dogs\n" * 20)
    model = tmp_path / "made" / "tokenizer"
    model.parent.mkdir()
    pieces.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(model), vocab_size=60, model_type="bpe", minloglevel=2
    )
    (model.parent / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "unk_token": "<unk>"}
    (model.parent / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<s>"}))
    loaded = text.load_tokenizer(model.parent)
    own = pieces.SentencePieceProcessor(model_file=f"{model}.model")
    for said in ("the cat", "hello dogs sat", "on to the world"):
        assert loaded.encode(said) == own.encode(said)
        assert loaded.decode(loaded.encode(said)) == said
    assert loaded.eos_id == own.eos_id()


def test_a_repository_without_network_says_how_to_go_on(monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    right = r"repository 'some/model' \(no network\); without network pass the path of a local folder"
    with pytest.raises(ValueError, match=right):
        text.load_tokenizer("some/model")


def test_a_repository_is_one_snapshot(monkeypatch, chatml) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kw: asked.append((args, kw)) or str(chatml))
    tokenizer = text.load_tokenizer("some/model", revision="v2")
    assert tokenizer.name == "the tokenizer of some/model"
    assert asked[0][0] == ("some/model",)
    assert asked[0][1]["revision"] == "v2"
    assert set(huggingface.FILES) < set(asked[0][1]["allow_patterns"])
    assert not any("safetensors" in pattern for pattern in asked[0][1]["allow_patterns"])


# --- with the model ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K lies in ../shared/data, which is absent")
def test_a_pretrained_model_comes_with_its_tokenizer(tmp_path) -> None:
    model, params, tokenizer, generation = text.load_pretrained(STORIES)
    assert params["embedding"].shape[0] == tokenizer.vocab_size == model.config.vocab_size == 512
    assert tokenizer.eos_id in generation.stop_ids
    shutil.copy(STORIES / "stories260K.bin", tmp_path)
    pieces, scores = pieces_of(0)
    more = [*pieces, *(b"q%d" % number for number in range(512))]
    pieces_tokenizer(more, [*scores, *[0.0] * 512], "larger").save(tmp_path)
    with pytest.raises(ValueError, match=f"ids up to {len(more) - 1} but the model's vocabulary is 512"):
        text.load_pretrained(tmp_path)
