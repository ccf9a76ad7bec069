"""Text into arrays: against definitions and brute force, and every way in which a line can be bad."""

import gzip
import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax import text
from rljax.math.shuffle import permutation
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.text import data
from rljax.text.data import examples, streaming

LETTERS = text.character_tokenizer("abcdefghijklmnopqrstuvwxyz .\n0123456789")
END = LETTERS.eos_id


def ids(string: str) -> list[int]:
    return LETTERS.encode(string)


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(tokenizer: text.Tokenizer = LETTERS, begin: bool = False, end: bool = False) -> text.Tokenizer:
    """A tokenizer that adds marks around a text, as Llama's (begin) and T5's (end) do."""

    def encode(string: str, add_special_tokens: bool = False) -> list[int]:
        inside = tokenizer.encode(string)
        front, back = [0] * (begin and add_special_tokens), [END] * (end and add_special_tokens)
        return front + inside + back

    return tokenizer._replace(encode=encode)


shuffled = jax.jit(permutation, static_argnums=1)


# --- one record --------------------------------------------------------------------------------------------


def test_what_of_a_record_is_learned() -> None:
    plain = data.example({"text": "ab", "other": 3}, LETTERS)
    assert plain.tokens.tolist() == [*ids("ab"), END]
    assert plain.mask.tolist() == [True] * 3
    pair = {"prompt": "ab", "completion": "cde", "text": None}
    assert data.example(pair, LETTERS).tokens.tolist() == [*ids("abcde"), END]
    assert data.example(pair, LETTERS).mask.tolist() == [False] * 2 + [True] * 4
    assert data.example(pair, LETTERS, loss="all").mask.tolist() == [True] * 6
    assert data.example(pair, LETTERS).tokens.dtype == np.int32


def test_marks_around_a_text_come_once_and_in_their_place() -> None:
    pair = {"prompt": "ab", "completion": "c"}
    llama, t5 = words(begin=True), words(end=True)
    assert data.example({"text": "a"}, llama).tokens.tolist() == [0, *ids("a"), END]
    assert data.example({"text": "a"}, t5).tokens.tolist() == [*ids("a"), END]
    assert data.pair(pair, llama) == ([0, *ids("ab")], [*ids("c"), END])
    assert data.pair(pair, t5) == (ids("ab"), [*ids("c"), END])  # a decoder goes on from its prompt
    assert data.example({"text": "ab"}, LETTERS._replace(eos_id=None)).tokens.tolist() == ids("ab")


def test_a_completion_is_encoded_after_its_prompt_where_the_prompt_stays_the_same() -> None:
    merging = {"a": 2, "b": 3, "c": 4, "bc": 5, " ": 6, " b": 7}

    def encode(string: str, add_special_tokens: bool = False) -> list[int]:
        del add_special_tokens
        found = []
        while string:
            piece = string[:2] if string[:2] in merging else string[:1]
            found.append(merging[piece])
            string = string[len(piece) :]
        return found

    tokenizer = LETTERS._replace(encode=encode)
    assert data.pair({"prompt": "a", "completion": "bc"}, tokenizer) == ([2], [5, END])
    # together they would be "a", "bc": a prompt that generation never sees
    assert data.pair({"prompt": "ab", "completion": "c"}, tokenizer) == ([2, 3], [4, END])


@pytest.mark.parametrize("ends", [False, True])
def test_marks_that_a_text_has_are_neither_doubled_nor_cut_off(ends: bool) -> None:
    marks = {"<": 0, ">": END}

    def encode(string: str, add_special_tokens: bool = False) -> list[int]:
        inside = [marks[letter] if letter in marks else ids(letter)[0] for letter in string]
        return [0] * add_special_tokens + inside + [END] * (add_special_tokens and ends)

    llama = LETTERS._replace(encode=encode, bos_id=0)
    assert examples.begun(llama, "<ab") == [0, *ids("ab")]  # a template wrote the first mark
    assert examples.begun(llama, "ab>") == [0, *ids("ab"), END]  # and this one
    assert examples.begun(llama, "ab") == [0, *ids("ab")]
    assert data.example({"text": "<ab>"}, llama).tokens.tolist() == [0, *ids("ab"), END]


def test_completions_that_a_tokenizer_would_begin_with_a_space() -> None:
    spaced = LETTERS._replace(encode=lambda string, add_special_tokens=False: ids(" " + string))
    wanted = ids(" ab"), [*ids("cd"), END]
    assert data.pair({"prompt": "ab", "completion": "cd"}, spaced) == wanted
    assert examples.turns(spaced, "ab", "cd") == wanted
    encoder = spaced._replace(
        encode=lambda string, add_special_tokens=False: (
            (ids(" " + string) if string else []) + [END] * add_special_tokens
        )
    )
    assert examples.turns(encoder, "ab", "cd") == (ids(" ab"), [*ids(" cd"), END])  # two texts


def says(messages: Any, add_generation_prompt: bool = False, tools: Any = (), **more: Any) -> text.Chat:
    """A template: a letter for the role, what is said, a full stop; tools and arguments come first."""
    first = ids("".join(tools) + "".join(f"{key}{value}" for key, value in more.items()))
    tokens, mask = first, [False] * len(first)
    for message in messages:
        said = [*ids(message["content"]), *ids(".")]
        tokens = [*tokens, *ids(message["role"][0]), *said]
        mask += [False, *[message["role"] == "assistant"] * len(said)]
    if add_generation_prompt:
        return text.Chat([*tokens, *ids("a")], [False] * (len(tokens) + 1))
    return text.Chat(tokens, mask)


def test_a_conversation_is_a_prompt_and_a_completion() -> None:
    talking = LETTERS._replace(chat=says)
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    assert examples.turns(talking, [user]) == (ids("uhi.a"), [])
    assert examples.turns(talking, [user], "yo") == (ids("uhi.a"), ids("yo."))
    assert examples.turns(talking, [user], [answer]) == (ids("uhi.a"), ids("yo."))
    records = [{"messages": [user, answer]}, {"prompt": [user], "completion": "yo"}]
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]  # as ShareGPT has it
    for record in [*records, {"prompt": [user], "completion": [answer]}, {"conversations": shared}]:
        found = data.example(record, talking)
        assert found.tokens.tolist() == ids("uhi.ayo.")
        assert found.mask.tolist() == [False] * 5 + [True] * 3
        assert found.whole
    tools = {"tools": '["t"]', "chat_template_kwargs": {"k": 3}}
    assert data.example(records[0] | tools, talking).tokens.tolist() == ids("tk3uhi.ayo.")
    with pytest.raises(ValueError, match="tools is no JSON"):
        data.example(records[0] | {"tools": "["}, talking)
    with pytest.raises(ValueError, match="no turn of the assistant after the prompt"):
        examples.turns(talking, [user], [user])


def test_a_conversation_is_masked_by_its_template() -> None:
    chat = text.Chat([5, 6, 7, 8], [False, False, True, True])
    talking = LETTERS._replace(chat=lambda messages: chat)
    found = data.example({"messages": [{"role": "user", "content": "x"}]}, talking)
    assert found.tokens.tolist() == chat.tokens  # its end is the template's, none is added
    assert found.mask.tolist() == chat.mask
    silent = LETTERS._replace(chat=lambda messages: text.Chat([5], [False]))
    with pytest.raises(ValueError, match="without a turn of the assistant"):
        data.example({"messages": []}, silent)


# --- files -------------------------------------------------------------------------------------------------

BAD = [
    (b'{"text": "a"', "invalid JSON (Expecting ',' delimiter at column 13)"),
    (b"[1, 2]", "is a list, must be an object with keys"),
    (b'{"body": "a", "x": 1}', "needs the key text, or prompt and completion, or messages; has body, x"),
    (b'{"text": 3}', "text is a int, must be a string"),
    (b'{"text": ""}', "empty text"),
    (b'{"prompt": "a"}', "missing key completion"),
    (b'{"completion": "a"}', "missing key prompt"),
    (b'{"prompt": "a", "completion": ""}', "empty completion"),
    (b'{"prompt": "", "completion": "a"}', "empty prompt"),
    (b'{"text": "\xff"}', "not UTF-8 (byte 0xff)"),
    (b'{"text": "aXb"}', "character 'X' at place 1 is not in"),
    (
        b'{"messages": [{"role": "user", "content": "a"}]}',
        "the character tokenizer of 39 characters has no chat",
    ),
    (b"[" * 100_000, "invalid JSON (nested too deeply)"),
    (b'{"text": null}', "needs the key text"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_line_is_named_and_counted_or_raised(tmp_path, line, reason) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    with pytest.warns(UserWarning, match="1 of 3 entries left out") as caught:
        examples, report = data.read(path, LETTERS)
    assert [example.tokens.tolist() for example in examples] == [[*ids("a"), END], [*ids("b"), END]]
    assert report.entries == 3
    assert report.bad[0].startswith(f"{path}:3: {reason}")
    assert report.bad[0] in str(caught[0].message)
    assert "\n" not in str(report)
    with pytest.raises(ValueError, match=r"some\.jsonl:3: ") as raised:
        data.read(path, LETTERS, strict=True)
    assert str(raised.value) == report.bad[0]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
def test_a_list_of_records_and_compressed_files(tmp_path: Path, name: str) -> None:
    records = [{"text": "ab"}, {"text": "c"}]
    given = (
        json.dumps(records, indent=1) if ".jsonl" not in name else lines(tmp_path / "b", *records).read_text()
    )
    raw = given.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found, report = data.read(tmp_path / name, LETTERS)
    assert [item.tokens.tolist() for item in found] == [[*ids("ab"), END], [*ids("c"), END]]
    assert (report.entries, report.bad) == (2, ())
    source = data.stream(tmp_path / name, LETTERS, 3, 1, order="given", block=1)
    position, rows = source.next(source.init())
    assert rows.tokens.tolist() == [[*ids("ab"), END]]
    assert source.next(position)[1].tokens[0, :2].tolist() == [*ids("c"), END]


def test_a_folder_and_half_a_list_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name the files in it"):
        data.read(tmp_path, LETTERS)
    (tmp_path / "a.json").write_text('[{"text": "a"},')
    with pytest.raises(ValueError, match="begins a JSON list and is none"):
        data.read(tmp_path / "a.json", LETTERS)


def test_many_bad_lines_are_one_line(tmp_path) -> None:
    path = lines(tmp_path / "x.jsonl", {"text": "a"}, *[{"text": ""}] * 10)
    with pytest.warns(UserWarning, match=r"10 of 11 .*:2: empty text; .*:3: .*:4: empty text; and 7 more$"):
        data.read(path, LETTERS)
    with pytest.raises(ValueError, match=r"no usable text in .*x\.jsonl: 2 of 2 entries left out"):
        data.read(lines(path, {"text": ""}, {"text": 3}), LETTERS)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"no usable text in .*: 0 of 0"):
        data.read(path, LETTERS)


def test_a_good_file_is_quiet(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"prompt": "b", "completion": "c"}')  # no end of line
    examples, report = data.read(path, LETTERS)  # a warning would be an error here
    assert [example.tokens.tolist()[:-1] for example in examples] == [ids("a"), ids("bc")]
    assert (report.entries, report.bad) == (2, ())


@pytest.mark.parametrize(
    ("documents", "right"),
    [("file", ["\n\na b\nc\n\n \nd\n"]), ("line", ["a b", "c", "d"]), ("paragraph", ["a b\nc", "d"])],
)
def test_plain_text(tmp_path, documents, right) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n\na b\nc\n\n \nd\n")
    examples, _ = data.read(path, LETTERS, documents=documents)
    assert [LETTERS.decode(example.tokens[:-1]) for example in examples] == right
    if documents == "paragraph":
        path.write_text("\n\na b\nX\n\n \nd\n")
        with pytest.warns(UserWarning, match="x.txt:3: character 'X'"):
            data.read(path, LETTERS, documents=documents)


class Indexed:
    """What of `datasets.Dataset` counts here."""

    def __init__(self, records: list) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return self.records[index]

    def __iter__(self):
        return iter(self.records)


def test_records_need_no_file() -> None:
    records = [{"text": "a", "messages": None}, {"text": ""}, {"text": "b"}]
    for source in (records, (record for record in records), Indexed(records)):
        with pytest.warns(UserWarning, match="1 of 3 entries left out: entry 1: empty text"):
            examples, _ = data.read(source, LETTERS)
        assert len(examples) == 2


def test_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list([{"text": "a"}, {"text": "bc"}])
    assert [len(example.tokens) for example in data.read(found, LETTERS)[0]] == [2, 3]
    position, rows = data.stream(found, LETTERS, 4, 2, order="given").next(data.Position())
    assert position.epoch == 1
    assert rows.tokens.tolist() == [[*ids("a"), END, 0, 0], [*ids("bc"), END, 0]]


def test_what_is_no_source(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.read(tmp_path / "x.jsonl", LETTERS)
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ValueError, match=r"x\.csv: what is in it is told by its name"):
        data.read([tmp_path / "x.csv"], LETTERS)
    with pytest.raises(ValueError, match="is one dict: pass a list"):
        data.read({"text": "a"}, LETTERS)
    with pytest.raises(ValueError, match="data is a int"):
        data.read(3, LETTERS)


# --- packing -----------------------------------------------------------------------------------------------


def documents(lengths: list[int]) -> list[data.Example]:
    """Document d holds d · 1000, d · 1000 + 1, ...; every third token is not to be learned."""
    return [
        data.Example(np.arange(n, dtype=np.int32) + 1000 * d, np.arange(n) % 3 != 2)
        for d, n in enumerate(lengths)
    ]


def unpacked(rows: data.Packed) -> list[tuple[list[int], list[bool]]]:
    """The segments in order: (tokens, mask)."""
    found = []
    for tokens, segments, mask in zip(*rows, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = np.flatnonzero(segments == segment)
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))  # in one piece
            found.append((tokens[inside].tolist(), mask[inside].tolist()))
    return found


def first_fit(lengths: list[int], length: int) -> list[int]:
    """The definition."""
    room: list[int] = []
    for need in lengths:
        row = next((row for row, space in enumerate(room) if space >= need), len(room))
        room += [length] * (row == len(room))
        room[row] -= need
    return room


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(2, 12))
def test_first_fit_keeps_documents_whole(lengths: list[int], length: int) -> None:
    items = documents(lengths)
    rows, counts = data.pack(items, length, pad_id=7)
    pieces = [
        (item.tokens[start : start + length].tolist(), item.mask[start : start + length].tolist())
        for item in items
        for start in range(0, len(item.tokens), length)
    ]
    right = [(tokens, [False, *mask[1:]]) for tokens, mask in pieces]
    assert sorted(unpacked(rows)) == sorted(right)
    room = first_fit([len(tokens) for tokens, _ in pieces], length)
    assert ((rows.segments == 0).sum(1)).tolist() == room
    padding = rows.segments == 0
    assert (rows.tokens[padding] == 7).all()
    assert not rows.mask[padding].any()
    assert counts == (len(items), sum(n > length for n in lengths), 0, len(room), sum(lengths))
    assert [array.dtype for array in rows] == [np.int32, np.int32, bool]


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(2, 12))
def test_sequential_is_one_stream_cut_into_rows(lengths: list[int], length: int) -> None:
    items = documents(lengths)
    rows, counts = data.pack(items, length, pad_id=7, packing="sequential")
    whole = np.concatenate([item.tokens for item in items])
    assert np.array_equal(rows.tokens.ravel()[: len(whole)], whole)
    assert (rows.tokens.ravel()[len(whole) :] == 7).all()
    assert rows.tokens.size - len(whole) < length
    learned = np.concatenate([item.mask for item in items])
    number = np.concatenate([[d] * len(item.tokens) for d, item in enumerate(items)])
    for place in range(len(whole)):
        row, column = divmod(place, length)
        begins = column == 0 or number[place] != number[place - 1]
        assert rows.mask[row, column] == (learned[place] and not begins)
        if column:
            assert rows.segments[row, column] == rows.segments[row, column - 1] + begins
        else:
            assert rows.segments[row, column] == 1
    cut = sum(
        start // length != (start + n - 1) // length
        for start, n in zip(itertools.accumulate([0, *lengths]), lengths, strict=False)
    )
    assert counts.split == cut


def test_long_documents_are_dropped_by_choice_and_counted() -> None:
    items = documents([3, 9, 4, 10])
    with pytest.warns(UserWarning, match="2 of 4 documents dropped: longer than length = 8"):
        rows, counts = data.pack(items, 8, long="drop")
    assert counts == (4, 0, 2, 1, 7)
    assert rows.tokens.tolist() == [[0, 1, 2, 2000, 2001, 2002, 2003, 0]]
    with pytest.raises(ValueError, match="none of 1 documents fits into length = 8"):
        data.pack(documents([9]), 8, long="drop")


def test_what_has_a_prompt_is_not_cut_from_it() -> None:
    pair = {"prompt": "abcdefgh", "completion": "ij"}
    records = [pair, {"prompt": "ab", "completion": "c"}, {"text": "abcdefghij"}]
    items = [data.example(record, LETTERS) for record in records]
    with pytest.warns(UserWarning, match="1 of 3 documents dropped: longer than length = 8"):
        rows, counts = data.pack(items, 8)
    assert (counts.split, counts.dropped) == (1, 1)
    assert (rows.segments > 0).sum() == 4 + 11
    with pytest.raises(ValueError, match="none of 1 documents fits into length = 8: take a length of 11"):
        data.pack(items[:1], 8)
    assert data.pack(items[:1], 8, long="split")[1].split == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"length": 1}, "length = 1"),
        ({"length": 4, "packing": "best"}, "packing = 'best'"),
        ({"length": 4, "long": "keep"}, "long = 'keep'"),
    ],
)
def test_packing_checks_its_choices(options, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        data.pack(documents([3]), **options)


def test_packing_changes_no_hidden_state() -> None:
    """Documents in one row give what each gives alone: segments and positions mean what they say."""
    config = TransformerConfig(64, 16, 32, 2, (Layer(), Layer()))
    model = transformer(config)
    params = model.init(jax.random.key(0))
    items = [data.Example(np.arange(n, dtype=np.int32) + 7 * n, np.ones(n, bool)) for n in (5, 3, 6)]
    rows, _ = data.pack(items, 9)
    assert rows.tokens.shape == (2, 9)
    forward = jax.jit(model.forward)
    packed = forward(params, *(np.pad(array, ((0, 1), (0, 0))) for array in (rows.tokens, rows.segments)))
    alone = np.zeros((3, 9), np.int32), np.zeros((3, 9), np.int32)
    for number, item in enumerate(items):
        alone[0][number, : len(item.tokens)] = item.tokens
        alone[1][number, : len(item.tokens)] = 1
    apart = forward(params, *alone)
    for number, item in enumerate(items):
        row, column = np.argwhere(rows.tokens == item.tokens[0])[0]
        size = len(item.tokens)
        np.testing.assert_allclose(packed[row, column : column + size], apart[number, :size], atol=1e-5)


def test_load_gives_device_arrays_and_counts(tmp_path) -> None:
    records = [{"text": "abc"}, {"text": ""}, {"prompt": "ab", "completion": "c"}, {"text": "0123456789"}]
    path = lines(tmp_path / "x.jsonl", *records)
    with pytest.warns(UserWarning, match="1 of 4 entries"):
        loaded = data.load(path, LETTERS, 8)
    assert all(isinstance(leaf, jax.Array) for leaf in loaded.rows)
    assert loaded.rows.tokens.shape == (3, 8)
    assert loaded.report.entries == 4
    assert loaded.counts == (3, 1, 0, 3, 4 + 4 + 11)
    assert loaded.rows.mask.sum() == 3 + 2 + 7 + 2  # the pair: c and the end


# --- pairs -------------------------------------------------------------------------------------------------


def test_pairs_for_decoders_and_for_encoders(tmp_path) -> None:
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "ab", "completion": "c"},
        {"prompt": "a", "completion": "bcd"},
        {"prompt": "abcdef", "completion": "c"},
    )
    with pytest.warns(UserWarning, match=r"1 of 3 pairs longer than 4 \+ 5 tokens: dropped"):
        rows, _, dropped = data.load_pairs(path, words(end=True), 4, 5)
    assert dropped == 1
    a, b, c, d = ids("abcd")
    assert rows.prompt.tolist() == [[0, 0, a, b], [0, 0, 0, a]]
    assert rows.valid.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert rows.completion.tolist() == [[c, END, 0, 0, 0], [b, c, d, END, 0]]
    assert rows.mask.sum(1).tolist() == [2, 4]
    with pytest.warns(UserWarning, match="1 of 3 pairs"):
        rows, _, _ = data.load_pairs(path, words(end=True), 4, 5, side="right")
    assert rows.prompt.tolist() == [[a, b, END, 0], [a, END, 0, 0]]
    assert rows.valid.tolist() == [[True, True, True, False], [True, True, False, False]]
    with pytest.raises(ValueError, match="3 of 3 pairs longer than 1"):
        data.load_pairs(path, LETTERS, 1, 1)


# --- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch_size"), [(7, 3), (8, 4), (300, 7), (5, 5), (4, 1)])
def test_every_row_once_per_epoch(size: int, batch_size: int) -> None:
    key = jax.random.key(3)
    count = size  # batches in batch_size epochs
    seen = [data.batch_indices(key, i, size, batch_size) for i in range(count)]
    flat = np.concatenate(seen)
    epochs = flat.reshape(batch_size, size)
    assert (np.sort(epochs, 1) == np.arange(size)).all()
    for epoch in range(batch_size):
        assert np.array_equal(epochs[epoch], shuffled(jax.random.fold_in(key, epoch), size))
    if size > 4:
        assert len({tuple(row) for row in epochs}) == batch_size
        assert not np.array_equal(data.batch_indices(jax.random.key(4), 0, size, batch_size), seen[0])


@pytest.mark.parametrize("iteration", [0, 123_456_789, 2**31 + 11])
def test_far_iterations_do_not_overflow(iteration: int) -> None:
    size, batch_size, key = 9_973, 4_096, jax.random.key(0)
    epoch, start = divmod(iteration * batch_size, size)
    order = [shuffled(jax.random.fold_in(key, (epoch + k) % 2**32), size) for k in range(2)]
    right = np.concatenate(order)[start : start + batch_size]
    traced = jax.jit(lambda i: data.batch_indices(key, i, size, batch_size))(jnp.uint32(iteration))
    assert np.array_equal(traced, right)


def test_a_batch_is_rows() -> None:
    rows = {"x": jnp.arange(10), "y": jnp.arange(20).reshape(10, 2)}
    found = data.batch(jax.random.key(0), 4, rows, 4)
    chosen = data.batch_indices(jax.random.key(0), 4, 10, 4)
    assert np.array_equal(found["x"], chosen)
    assert np.array_equal(found["y"][:, 0], 2 * chosen)
    for batch_size in (0, 11):
        with pytest.raises(ValueError, match=f"batch_size = {batch_size}"):
            data.batch(jax.random.key(0), 4, rows, batch_size)
    with pytest.raises(ValueError, match="more factors in common"):
        data.batch_indices(jax.random.key(0), 0, 10**7 + 1, 512)


def test_prompts_are_padded_by_their_lengths() -> None:
    prompts = [[5, 6], [7], [0, 0, 8]]  # ids that equal the pad are tokens all the same
    tokens, valid = data.pad_prompts(prompts)
    assert tokens.tolist() == [[0, 5, 6], [0, 0, 7], [0, 0, 8]]
    assert valid.tolist() == [[False, True, True], [False, False, True], [True, True, True]]
    tokens, valid = data.pad_prompts(prompts, 4, side="right", pad_id=9)
    assert tokens.tolist() == [[5, 6, 9, 9], [7, 9, 9, 9], [0, 0, 8, 9]]
    assert valid.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 3 + [False]]
    assert (tokens.dtype, valid.dtype) == (np.int32, bool)
    with pytest.raises(ValueError, match="prompt 1 is empty: begin it with"):
        data.pad_prompts([[1], []])
    with pytest.raises(ValueError, match="prompt 2 has 3 tokens, more than the 2"):
        data.pad_prompts(prompts, 2)
    with pytest.raises(ValueError, match="no prompts"):
        data.pad_prompts([])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 5))
def test_buckets_pad_as_little_as_any_cut(lengths: list[int], count: int) -> None:
    groups = data.buckets(lengths, count)
    members = np.concatenate([inside for _, inside in groups])
    assert sorted(members.tolist()) == list(range(len(lengths)))
    assert 1 <= len(groups) <= count
    bounds = [length for length, _ in groups]
    assert bounds == sorted(set(bounds))
    for length, inside in groups:
        assert max(lengths[index] for index in inside) == length
    distinct = sorted(set(lengths))
    best = min(
        sum(min(bound for bound in (*cut, distinct[-1]) if bound >= length) for length in lengths)
        for size in range(min(count, len(distinct)))
        for cut in itertools.combinations(distinct[:-1], size)
    )
    assert sum(length * len(inside) for length, inside in groups) == best


def test_buckets_of_very_many_lengths() -> None:
    lengths = np.arange(1, 100_001)
    groups = data.buckets(lengths, 4)
    assert len(groups) == 4
    assert sum(len(inside) for _, inside in groups) == 100_000
    padded = sum(length * len(inside) for length, inside in groups)
    assert padded < 1.01 * 100_000**2 * 5 / 8  # four equal parts: Σ k/4 · 1/4
    with pytest.raises(ValueError, match="count = 0"):
        data.buckets([1], 0)
    with pytest.raises(ValueError, match="needs lengths"):
        data.buckets([], 2)
    with pytest.raises(ValueError, match="needs lengths"):
        data.buckets([3, 0], 2)


# --- streams -----------------------------------------------------------------------------------------------


def corpus(folder: Path) -> tuple[list[Path], list[str]]:
    """Two files of JSON lines and one of plain text, with 23, 1 and 9 documents of their own."""
    chance = random.Random(0)
    found, files = [], []
    for number, (name, count) in enumerate({"a.jsonl": 23, "b.jsonl": 1, "c.txt": 9}.items()):
        new = [f"{number}{index:02}" + "x" * chance.randrange(9) for index in range(count)]
        found += new
        content = [json.dumps({"text": doc}) for doc in new] if name.endswith("jsonl") else new
        files.append(folder / name)
        files[-1].write_text("\n".join(content) + "\n")
    return files, found


def texts(rows: data.Packed) -> list[str]:
    return [LETTERS.decode(tokens, skip_special_tokens=True) for tokens, _ in unpacked(rows)]


@pytest.mark.parametrize("block", [1, 5, 8192])
@pytest.mark.parametrize("order", ["shuffled", "given"])
def test_an_epoch_holds_every_document_once(tmp_path, order, block) -> None:
    files, right = corpus(tmp_path)
    source = data.stream(files, LETTERS, 16, 1, order=order, block=block, seed=3)
    position, seen = source.init(), {0: [], 1: [], 2: []}
    while position.epoch < 3:
        epoch = position.epoch
        position, rows = source.next(position)
        seen[epoch] += texts(rows)
    assert all(sorted(found) == sorted(right) for found in seen.values())
    if order == "given" and block == 1:
        assert seen[0] == seen[1] == right
    elif order == "shuffled" and block > 1:
        assert len({tuple(found) for found in seen.values()}) == 3


@pytest.mark.parametrize("gigabyte", [2**30, 64])  # small: the position's two digits are both at work
@pytest.mark.parametrize("packing", ["first_fit", "sequential"])
def test_a_stream_goes_on_exactly_where_it_was(tmp_path, monkeypatch, packing, gigabyte) -> None:
    monkeypatch.setattr(streaming, "GIGABYTE", gigabyte)
    files, _ = corpus(tmp_path)
    make = lambda seed=7: data.stream(files, LETTERS, 12, 4, block=6, packing=packing, seed=seed)
    source, position = make(), data.Position()
    saved, batches = [], []
    for _ in range(24):
        saved.append(position)
        position, rows = source.next(position)
        assert rows.tokens.shape == rows.segments.shape == rows.mask.shape == (4, 12)
        batches.append(rows)
    assert position.epoch >= 2
    assert gigabyte > 64 or any(place.gigabyte for place in saved)
    for index, place in enumerate(saved):
        by_json = json.loads(json.dumps(place._asdict()))
        by_arrays = jax.tree.map(lambda value: jnp.asarray(value, jnp.int32), place)
        for again in (by_json, by_arrays):
            fresh = make()
            for right in batches[index : index + 2]:
                again, rows = fresh.next(again)
                for array, expected in zip(rows, right, strict=True):
                    np.testing.assert_array_equal(array, expected)
        assert again == [*saved, position, None][index + len(batches[index : index + 2])]
    # going back is as good as going on, and another seed is another order
    np.testing.assert_array_equal(source.next(saved[2])[1].tokens, batches[2].tokens)
    assert not np.array_equal(make(seed=8).next(saved[0])[1].tokens, batches[0].tokens)


def test_the_order_of_a_stream_is_fixed_for_ever(tmp_path) -> None:
    """A golden value: runs resume under later versions of numpy and of this file."""
    path = lines(tmp_path / "x.jsonl", *({"text": letter} for letter in "abcdefgh"))
    _, rows = data.stream(path, LETTERS, 2, 8, seed=1).next(data.Position())
    assert "".join(texts(rows)) == "hbgdface"


def test_streams_count_what_they_leave_out(tmp_path) -> None:
    path = lines(tmp_path / "x.jsonl", {"text": "a"}, {"text": ""}, {"text": "0123456789"}, {"text": "b"})
    source = data.stream(path, LETTERS, 4, 2, long="drop", order="given")
    with (
        pytest.warns(UserWarning, match=r"1 of 4 entries left out: .*x.jsonl:2: empty text"),
        pytest.warns(UserWarning, match="1 of 3 documents dropped: longer than length = 4"),
    ):
        position, rows = source.next(source.init())
    assert texts(rows) == ["a", "b", "a", "b"]  # one row holds both; two epochs
    assert (position.epoch, position.bad, position.dropped, position.split) == (2, 2, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # later epochs do not repeat it
        source.next(position)
    with pytest.warns(UserWarning, match="1 of 4"):
        position, _ = data.stream(path, LETTERS, 4, 5, order="given").next(data.Position())
    assert (position.epoch, position.bad, position.dropped, position.split) == (1, 1, 0, 1)
    with pytest.raises(ValueError, match=r"x\.jsonl:2: empty text"):
        data.stream(path, LETTERS, 4, 2, strict=True).next(data.Position())


def test_a_stream_without_text_ends(tmp_path) -> None:
    path = lines(tmp_path / "x.jsonl", {"text": ""})
    with (
        pytest.warns(UserWarning, match="1 of 1"),
        pytest.raises(ValueError, match="an epoch gave no row"),
    ):
        data.stream(path, LETTERS, 4, 2).next(data.Position())
    with pytest.raises(ValueError, match="order = 'random'"):
        data.stream(path, LETTERS, 4, 2, order="random")  # type: ignore
    with pytest.raises(FileNotFoundError):
        data.stream(tmp_path / "y.jsonl", LETTERS, 4, 2)


def test_a_changed_file_is_noticed(tmp_path) -> None:
    path = lines(tmp_path / "x.jsonl", *[{"text": "abc"}] * 8)
    make = lambda: data.stream(path, LETTERS, 4, 2, block=2, order="given")
    position, _ = make().next(data.Position())
    assert position.byte > 0
    for content in (b'{"text": "abc"}\n', b"x" + path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"has changed: no line begins at byte {position.byte}"):
            make().next(position)


def test_records_stream_too() -> None:
    records = [{"text": letter} for letter in "abcdefg"]
    source = data.stream(Indexed(records), LETTERS, 4, 2, block=3)
    position, seen = source.init(), ""
    while position.epoch == 0:
        position, rows = source.next(position)
        seen += "".join(texts(rows))
    assert sorted(seen[:7]) == list("abcdefg")
