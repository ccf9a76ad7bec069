"""Tasks: demonstrations answer what they ask, nothing held out is learnt, and bad files are told."""

import ast
import gzip
import json
import math
import operator
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rljax
from rljax import text
from rljax.text import data, rewards, tasks
from rljax.text.problem import demonstrations
from rljax.text.problem import task as task_of
from rljax.text.tasks import expressions, files
from rljax.text.tasks.build import ordered
from rljax.text.tasks.guess_number import _halving
from rljax.text.tasks.randomwalks import graph, optimality
from rljax.text.tasks.sentiment_words import WORDS, worth
from rljax.types import Prompts, Scores

SHARED = Path(rljax.__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets of ../shared/data are absent")

SMALL: dict[str, dict[str, Any]] = {
    "reverse": {"train": 60, "held_out": 20},
    "sort": {"train": 60, "held_out": 20, "symbols": "0123456789"},
    "addition": {"train": 60, "held_out": 20},
    "countdown": {"train": 60, "held_out": 20},
    "randomwalks": {"train": 60, "held_out": 20, "pairs": 50},
    "sentiment_words": {"train": 60, "held_out": 20, "pairs": 50},
    "guess_number": {"numbers": 20},
}
NO_SEED = ("guess_number",)


def make(name: str, **arguments: Any) -> text.Problem:
    return tasks.make(name, **SMALL[name] | arguments)


def rewarded(problem: text.Problem, prompts: Prompts, completions: Any) -> np.ndarray:
    """(B, R) of completions, by the compiled rewards of the problem and those of the host."""
    begun = jnp.where(prompts.valid, prompts.tokens, -1)
    score = lambda reward: jax.jit(reward.apply)(
        reward.params, begun, jnp.asarray(completions), prompts.reference
    )
    values = [
        np.full(len(begun), np.nan) if each.host else np.asarray(score(each)) for each in problem.rewards
    ]
    scores = Scores(jnp.asarray(np.stack(values, 1), jnp.float32), jnp.zeros((len(begun), len(values)), bool))
    rows = prompts.reference["row"]
    return np.asarray(rewards.on_host(task_of(problem, "prompts"), begun, completions, rows, scores).values)


def written(problem: text.Problem, rows: Any) -> list[str]:
    return rewards.decoded(problem.tokenizer, rows)


def prompts_of(problem: text.Problem, prompts: Prompts) -> list[str]:
    return written(problem, np.where(prompts.valid, prompts.tokens, -1))


def encoded(problem: text.Problem, strings: list[str], stop: bool = True) -> np.ndarray:
    """(B, T) of completions."""
    rows = np.full((len(strings), problem.max_new_tokens), -1, np.int32)
    for row, string in zip(rows, strings, strict=True):
        ids = [*problem.tokenizer.encode(string), *[problem.tokenizer.eos_id] * stop]
        row[: len(ids)] = ids[: len(row)]
    return rows


def leaves(problem: text.Problem) -> list[Any]:
    parts = (problem.learn, problem.held_out, problem.preferences, problem.text)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]


def same(one: text.Problem, other: text.Problem) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(a.shape == b.shape and (a == b).all() for a, b in pairs)


# every task that needs no file


@pytest.mark.parametrize("name", SMALL)
def test_prompts_are_there_and_records_are_theirs(name: str) -> None:
    problem = make(name)
    rewards.check(task_of(problem, "prompts"))
    for prompts in (problem.learn, problem.held_out):
        records = [problem.records[int(row)] for row in prompts.reference["row"]]
        assert prompts_of(problem, prompts) == [record["prompt"] for record in records]
        assert written(problem, prompts.demonstration) == [record["completion"] for record in records]
        assert prompts.demonstration.shape == (len(records), problem.max_new_tokens)
    assert problem.stop_ids == (problem.tokenizer.eos_id,)
    assert problem.arguments == {"name": name, **SMALL[name]}
    json.dumps(problem.arguments)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("randomwalks", "guess_number")])
def test_no_prompt_that_is_held_out_is_learnt(name: str) -> None:
    problem = make(name)
    learnt, new = prompts_of(problem, problem.learn), prompts_of(problem, problem.held_out)
    assert (len(learnt), len(set(new))) == (60, 20)
    assert not set(learnt) & set(new)
    if name != "sentiment_words":
        assert len(set(learnt)) == 60


@pytest.mark.parametrize("name", ["reverse", "sort", "addition", "countdown"])
def test_demonstrations_are_right_and_others_are_not(name: str) -> None:
    problem = make(name)
    for prompts in (problem.learn, problem.held_out):
        assert (rewarded(problem, prompts, prompts.demonstration) == 1).all()
    shown = written(problem, problem.learn.demonstration)
    turned = [string[1:] for string in shown]
    assert (rewarded(problem, problem.learn, encoded(problem, turned)) == 0).all()
    for rows in (encoded(problem, [""] * 60), encoded(problem, [""] * 60, stop=False)):
        assert (rewarded(problem, problem.learn, rows) == 0).all()
    unfinished = np.where(
        problem.learn.demonstration == problem.tokenizer.eos_id, -1, problem.learn.demonstration
    )
    assert (rewarded(problem, problem.learn, unfinished) == 0).all()
    noise = np.random.default_rng(0).integers(-1, problem.tokenizer.vocab_size, (60, problem.max_new_tokens))
    assert np.isfinite(rewarded(problem, problem.learn, noise.astype(np.int32))).all()


@pytest.mark.parametrize("name", [name for name in SMALL if name not in NO_SEED])
def test_a_seed_says_all(name: str) -> None:
    assert same(make(name, seed=3), make(name, seed=3))
    assert not same(make(name, seed=3), make(name, seed=4))


@pytest.mark.parametrize("name", SMALL)
def test_rewards_hold_no_large_constants(name: str) -> None:
    problem = make(name)
    for reward in problem.rewards:
        arguments = (None, problem.learn.tokens, problem.learn.demonstration, problem.learn.reference)
        constants = jax.make_jaxpr(reward.apply)(*arguments).consts
        assert sum(np.asarray(constant).nbytes for constant in constants) < 2000


def test_strings_and_sums_are_what_they_say() -> None:
    for record in make("reverse", min_length=3, max_length=3, symbols="xyz", train=20, held_out=4).records:
        assert re.fullmatch("[xyz]{3}>", record["prompt"])
        assert record["completion"] == record["prompt"][2::-1]
    for record in make("sort", symbols="ba", max_length=8).records:  # in the order of the symbols
        assert record["completion"] == "".join(sorted(record["prompt"][:-1], reverse=True))
    for record in make("addition", digits=3).records:
        a, b = map(int, record["prompt"][:-1].split("+"))
        assert (max(a, b) < 1000, int(record["completion"])) == (True, a + b)


# countdown


def oracle(string: str) -> tuple[Fraction, list[int]] | None:
    """By Python's own parser."""
    if not re.fullmatch(r"[0-9+\-*/()]+", string) or re.search(r"(?<![0-9])0|\*\*|//|[0-9]{9}", string):
        return None
    known = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node: Any) -> Fraction:
        if isinstance(node, ast.BinOp):
            return known[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        raise SyntaxError("a sign, a call or a tuple")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 3(4), which looks like a call
            return value(ast.parse(string, mode="eval").body), [int(n) for n in re.findall("[0-9]+", string)]
    except (SyntaxError, ZeroDivisionError):
        return None


LENGTH, COUNT = 24, 4
TABLE = {character: kind for kind, character in enumerate(expressions.CHARACTERS)}
evaluate = jax.jit(jax.vmap(lambda tokens: expressions.evaluate(tokens, COUNT)))


def read(strings: list[str]) -> list[tuple[Fraction, list[int]] | None]:
    """What the compiled program says of expressions of at most 23 characters."""
    rows = np.full((len(strings), LENGTH), -1, np.int32)
    for row, string in zip(rows, strings, strict=True):
        row[: len(string) + 1] = [TABLE[character] for character in string] + [expressions.STOP]
    found = jax.tree.map(np.asarray, evaluate(rows))
    return [
        (Fraction(int(n), int(d)), [int(x) for x in used if x >= 0]) if ok else None
        for ok, n, d, used in zip(*found, strict=True)
    ]


def expected(string: str) -> tuple[Fraction, list[int]] | None:
    found = oracle(string)
    return None if found is None or len(found[1]) > COUNT else found


def test_expressions_against_python() -> None:
    generator = np.random.default_rng(0)
    grown = lambda depth: (
        str(generator.integers(1, 30))
        if depth == 0 or generator.random() < 0.3
        else "({}{}{})".format(grown(depth - 1), generator.choice([*"+-*/"]), grown(depth - 1))
    )
    strings: list[str] = []
    while len(strings) < 3000:
        string = grown(2)
        string = string[1:-1] if string[0] == "(" else string
        if generator.random() < 0.5:  # without some brackets: + − · / in one another's order
            string = string.replace("(", "").replace(")", "")
        if len(string) < LENGTH:
            strings.append(string)
    broken = []
    for string in strings:  # one character more, less or other
        at = generator.integers(len(string) + 1)
        new = generator.choice([*expressions.CHARACTERS, ""])
        broken.append((string[:at] + new + string[at + generator.integers(2) :])[: LENGTH - 1])
    noise = ["".join(generator.choice([*"12+-*/()"], generator.integers(15))) for _ in range(3000)]
    everything = strings + broken + noise
    right = [expected(string) for string in everything]
    assert read(everything) == right
    assert sum(found is None for found in right) > 2000
    assert sum(found is not None for found in right[3000:]) > 500
    for string in everything:
        assert expressions.value_of(string) == oracle(string)


def test_fractions_are_exact_up_to_the_largest_numbers() -> None:
    generator = np.random.default_rng(0)
    leaf = lambda: str(generator.integers(200, 215))  # 215^4 < 2^31 < 216^4
    sign = lambda: generator.choice([*"+-*/"])
    strings = [
        f"({leaf()}{sign()}{leaf()}){sign()}({leaf()}{sign()}{leaf()})" if generator.random() < 0.5
        else f"{leaf()}{sign()}({leaf()}{sign()}({leaf()}{sign()}{leaf()}))"
        for _ in range(2000)
    ]  # fmt: skip
    assert read(strings) == [oracle(string) for string in strings]


@settings(max_examples=300, deadline=None)
@given(st.text(expressions.CHARACTERS, max_size=14))
def test_any_expression(string: str) -> None:
    right = expected(string)
    assert expressions.value_of(string) == oracle(string)
    # within the numbers for which it is exact, which a task keeps to
    assume(math.prod(int(number) + 1 for number in re.findall("[0-9]+", string)) < 2**31)
    assert read([string]) == [right]


def test_expressions_by_hand() -> None:
    bad = [
        "",
        "()",
        "3+",
        "+3",
        "-3",
        "3++4",
        "(3",
        "3)",
        "3(4)",
        "(3)(4)",
        "03",
        "0",
        "1/(2-2)",
        "3*/4",
        ")3(",
    ]
    assert read(bad) == [None] * len(bad)
    good = ["((((3))))", "3-4-5", "8/4/2", "2+3*4", "2*(3+4)", "1/(1/3)", "8/(3-8/3)", "2-(3-(4-5))"]
    values = [3, -6, 1, 14, 14, 3, 24, -2]
    assert [found[0] for found in read(good) if found] == values
    assert expressions.value_of(" ( 3 + 4 ) * 2 ") == (14, [3, 4, 2])
    assert expressions.value_of("3 4") is None
    long = ["4294967299", "100000000", "99999999"]  # the first is 2^32 + 3
    assert read(long) == [None, None, (99999999, [99999999])]


def test_countdown_takes_any_solution_of_every_number_once() -> None:
    problem = make("countdown")
    row = {"numbers": jnp.array([[3, 4, 2]]), "target": jnp.array([14])}
    asked = Prompts(jnp.ones((1, 3), int), jnp.ones((1, 3), bool), row)
    (reward,) = problem.rewards
    score = lambda string: float(
        jax.jit(reward.apply)(None, asked.tokens, encoded(problem, [string]), asked.reference)[0]
    )
    for string in ("(3+4)*2", "2*(4+3)", "((3)+4)*2"):
        assert score(string) == 1, string
    for string in ("7*2", "3*4+2+0", "3*4+2-1+1", "(3+4)*2+3-3", "4*3*2", "2*3+4*2", "(3+4)*", "14"):
        assert score(string) == 0, string
    exact = {"numbers": jnp.array([[3, 8, 8]]), "target": jnp.array([3])}
    assert float(reward.apply(None, asked.tokens, encoded(problem, ["8/(8/3)"]), exact)[0]) == 1


def test_countdown_on_the_host_agrees() -> None:
    problem = make("countdown", tokenizer=text.character_tokenizer(expressions.CHARACTERS + " ,=>"))
    assert [reward.host for reward in problem.rewards] == [True]
    assert (rewarded(problem, problem.held_out, problem.held_out.demonstration) == 1).all()
    assert (rewarded(problem, problem.held_out, encoded(problem, ["1+1"] * 20)) == 0).all()


# random walks


@pytest.fixture(scope="module")
def walks() -> text.Problem:
    return tasks.make("randomwalks", train=400, pairs=400, held_out=50)


def test_the_optimum_of_walks_is_one(walks: text.Problem) -> None:
    values = rewarded(walks, walks.learn, walks.learn.demonstration)[:, 0]
    assert (values > 0).all()
    assert (values <= 1).all()
    assert 0.3 < values.mean() < 0.95  # good, and to be bettered
    assert (rewarded(walks, walks.held_out, walks.held_out.demonstration) == 1).all()
    assert sorted(prompts_of(walks, walks.held_out)) == [*"bcdefghijklmnopqrstu"]


def test_optimality_is_the_shortest_over_the_found() -> None:
    edges = np.zeros((5, 5), bool)
    for a, b in [(1, 0), (2, 1), (3, 2), (2, 3), (4, 4)]:
        edges[a, b] = True
    letters = text.character_tokenizer("abcde")
    reward = optimality(edges, np.array([0, 1, 2, 3, 9]), letters)
    cases = {
        ("b", "a"): 1, ("c", "ba"): 1, ("c", "dcba"): 0.5, ("d", "cba"): 1, ("c", "a"): 0, ("c", "b"): 0,
        ("c", "bab"): 0, ("c", ""): 0, ("d", "cdcba"): 0.6, ("b", "aa"): 0,
    }  # fmt: skip
    for (start, path), value in cases.items():
        rows = np.full((1, 6), -1, np.int32)
        ids = [*letters.encode(path), letters.eos_id]
        rows[0, : len(ids)] = ids
        found = jax.jit(reward.apply)(None, jnp.array([letters.encode(start)]), rows, None)
        np.testing.assert_allclose(found, [value], err_msg=start + path)
        rows[0, len(ids) - 1] = -1  # without a stop token
        assert reward.apply(None, jnp.array([letters.encode(start)]), rows, None)[0] == 0
    odd = jnp.array([[0, 1, 0, 1, 99, 1], [1, 1, 1, 1, 1, 1], [-1] * 6])
    assert (reward.apply(None, jnp.array([[letters.encode("b")[0]]] * 3), odd, None) == 0).all()


def test_the_graph_is_one_of_shortest_paths() -> None:
    edges, distance = graph(np.random.default_rng(1), 21, 10, 0.1)
    reached = np.linalg.matrix_power(np.eye(21, dtype=int) + edges, 30)[:, 0] > 0
    assert reached.all()
    brute, power = np.full(21, -1), np.eye(21, dtype=int)
    for steps in range(10):
        brute = np.where((brute < 0) & (power[:, 0] > 0), steps, brute)
        power = (power @ edges > 0).astype(int)
    np.testing.assert_array_equal(distance, brute)
    with pytest.raises(ValueError, match="no graph of 21 nodes was found"):
        graph(np.random.default_rng(1), 21, 10, 1e-6)


@pytest.mark.parametrize("name", ["randomwalks", "sentiment_words"])
def test_preferences_come_from_the_true_reward(name: str) -> None:
    problem = make(name, pairs=400, temperature=0.1)
    assert problem.preferences is not None
    learnt, new = problem.preferences
    assert (learnt.completion.shape[:2], len(new.tokens)) == ((400, 2), 20)
    assert (np.asarray(learnt.weight) == 1).all()
    assert (np.asarray(learnt.margin) == 0).all()
    score = lambda k: np.asarray(
        problem.rewards[0].apply(None, learnt.tokens, learnt.completion[:, k], None), np.float64
    )
    difference = score(0) - score(1)
    assert not (learnt.completion[:, 0] == learnt.completion[:, 1]).all(-1).any()
    apart = np.abs(difference) > 1e-6
    share = 1 / (1 + np.exp(-np.abs(difference[apart]) / 0.1))
    right = (difference[apart] > 0).mean()
    assert abs(right - share.mean()) < 4 * np.sqrt((share * (1 - share)).sum()) / apart.sum()
    assert apart.sum() > 200


def test_ordered_is_bradley_and_terry() -> None:
    scores = np.tile([[0.3, 0.1]], (20_000, 1))
    second = ordered(np.random.default_rng(0), scores, 0.2).mean()
    assert abs(second - 1 / (1 + np.e)) < 0.015
    assert ordered(np.random.default_rng(0), np.array([[1e9, 0.0], [0.0, 1e9]]), 1e-9).tolist() == [0, 1]


@pytest.mark.parametrize("name", ["randomwalks", "sentiment_words"])
def test_text_is_sentences_with_their_ends(name: str) -> None:
    problem = make(name)
    assert problem.text is not None
    ids = np.asarray(problem.text[0])
    sentences = np.split(ids, np.flatnonzero(ids == problem.tokenizer.eos_id) + 1)
    assert len(sentences) == 61
    assert sentences[-1].size == 0
    assert 0 < problem.text[1].size < ids.size
    for learns in ("text", "demonstrations", "preferences", "prompts"):
        task_of(problem, learns)


# words


def test_sentiment_is_that_of_the_words() -> None:
    problem = make("sentiment_words")
    shown = problem.learn.demonstration
    values = rewarded(problem, problem.learn, shown)[:, 0]
    np.testing.assert_allclose(values, [worth(s) for s in written(problem, shown)], rtol=1e-6)
    assert abs(values.mean()) < 0.1
    said = ["good great", "", "bad was", "was very", "good bad long was"]
    some = jax.tree.map(lambda x: x[:5], problem.learn)
    found = rewarded(problem, some, encoded(problem, said))
    np.testing.assert_allclose(found[:, 0], [1, 0, -0.5, 0, 0])
    assert len(set(WORDS)) == len(WORDS)


def test_word_tokenizer(tmp_path: Path) -> None:
    tokenizer = text.word_tokenizer(["kind", "old", "größer", "kind"])
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("old  kind\n") == [3, 2]
    assert tokenizer.decode([3, 1, 4, 0], skip_special_tokens=True) == "old größer"
    assert tokenizer.decode([3, 1]) == "old <eos>"
    tokenizer.save(tmp_path)
    again = text.load_tokenizer(tmp_path)
    assert (again.name, again.encode("größer")) == (tokenizer.name, [4])
    with pytest.raises(ValueError, match="word 'new' is not in the word tokenizer of 3 words"):
        tokenizer.encode("old new")
    with pytest.raises(ValueError, match="'a b' is not one word"):
        text.word_tokenizer(["a b"])
    with pytest.raises(ValueError, match="no words"):
        text.word_tokenizer([])
    with pytest.raises(ValueError, match="id 5 is not in the vocabulary"):
        tokenizer.decode([5])
    (tmp_path / "word_tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no saved word tokenizer"):
        text.load_tokenizer(tmp_path)


# a number to guess


def played(problem: text.Problem, secret: int, policy: Any) -> np.ndarray:
    """A completion (T,) of a policy of tokens, with the world's in between."""
    assert problem.observe is not None
    observe = jax.jit(problem.observe)
    begin = problem.learn.tokens.shape[1]
    context = np.full(begin + problem.max_new_tokens, -1, np.int32)
    context[:begin] = problem.learn.tokens[0]
    for step in range(problem.max_new_tokens):
        world = int(observe(context, jnp.int32(step), {"secret": jnp.int32(secret)}))
        context[begin + step] = world if world >= 0 else policy(context[begin : begin + step])
        if context[begin + step] == problem.tokenizer.eos_id:
            break
    return context[begin:]


def test_the_world_answers_as_the_demonstrations_say() -> None:
    problem = make("guess_number")
    for row, secret in enumerate(problem.learn.reference["secret"].tolist()):
        shown = np.asarray(problem.learn.demonstration[row])
        np.testing.assert_array_equal(
            played(problem, secret, lambda so_far, shown=shown: shown[len(so_far)]), shown
        )
    values = rewarded(problem, problem.learn, problem.learn.demonstration)
    assert (values[:, 0] == 1).all()
    assert values[:, 1].max() <= 5  # 20 numbers by halving
    assert 3 < values[:, 1].mean() < 4.5
    assert [reward.weight for reward in problem.rewards] == [1, -0.02]
    np.testing.assert_array_equal(problem.learn.reference["secret"], np.arange(20))


def test_guesses_that_are_none_end_the_game() -> None:
    problem = make("guess_number", guesses=3)
    zero, less = problem.tokenizer.encode("0")[0], problem.tokenizer.encode("<")[0]
    always = played(problem, 7, lambda so_far: zero)  # 00 is too small, three times
    assert written(problem, always[None]) == ["00>00>00"]
    nonsense = played(problem, 7, lambda so_far: less)
    assert written(problem, nonsense[None]) == ["<<"]
    stopped = played(problem, 0, lambda so_far: problem.tokenizer.eos_id if so_far.size else zero)
    some = jax.tree.map(lambda x: x[jnp.array([7, 7, 0])], problem.learn)
    found = rewarded(problem, some, np.stack([always, nonsense, stopped]))
    np.testing.assert_array_equal(found, [[0, 3], [0, 1], [0, 0]])
    assert _halving(5, 10, 2, 1) == "4>7"


# by name


def test_names_and_arguments_that_are_none() -> None:
    for name, arguments, message in [
        ("revers", {}, "no task is named 'revers': there are reverse, sort, .*did you mean reverse"),
        ("reverse", {"max_lenght": 3}, "has no argument 'max_lenght': it has .*did you mean max_length"),
        ("reverse", {"max_length": "3"}, "max_length = '3': must be an integer"),
        ("reverse", {"max_length": True}, "max_length = True: must be an integer"),
        ("reverse", {"symbols": 3}, "symbols = 3: must be a string"),
        ("reverse", {"tokenizer": "gpt2"}, "tokenizer = 'gpt2': must be a Tokenizer"),
        ("randomwalks", {"temperature": float("nan")}, "temperature = nan: must be a number"),
        ("gsm8k", {}, "the task gsm8k reads files: pass data=PATH"),
        ("gsm8k", {"data": "x", "calculator": 1}, "calculator = 1: must be True or False"),
        ("reverse", {"min_length": 4, "max_length": 3}, "max_length = 3: must be at least 4"),
        ("reverse", {"symbols": "aab"}, "symbols = 'aab': must be at least two different"),
        ("reverse", {"symbols": "a>"}, "none of '>'"),
        ("reverse", {"symbols": "ab", "max_length": 2}, "only 4 different prompts were found of the 4352"),
        ("addition", {"digits": 0}, "digits = 0: must be at least 1"),
        ("addition", {"digits": 40}, "digits = 40: must be at most 18"),
        ("countdown", {"numbers": 8, "largest": 99}, r"\(largest \+ 1\)\^numbers must be below 2\^31"),
        ("randomwalks", {"nodes": 27}, "nodes = 27.*at most 26"),
        ("sentiment_words", {"held_out": 768}, "held_out = 768.*below 768"),
        ("guess_number", {"numbers": 1}, "numbers = 1: must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            tasks.make(name, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["randomwalks", "sentiment_words", "guess_number"])
def test_own_vocabularies_are_not_another_models(name: str) -> None:
    with pytest.raises(ValueError, match=f"the task {name} has a vocabulary of its own"):
        make(name, tokenizer=text.character_tokenizer("ab"))


@pytest.mark.parametrize("name", ["reverse", "sort", "addition"])
def test_strings_can_be_written_in_any_vocabulary(name: str) -> None:
    tokenizer = text.byte_pair_tokenizer(["ab ba 12 21 ab 12", "abc"], 260)._replace(bos_id=None)
    problem = make(name, tokenizer=tokenizer)
    assert problem.tokenizer is tokenizer
    assert "tokenizer" not in (problem.arguments or {})
    assert (rewarded(problem, problem.held_out, problem.held_out.demonstration) == 1).all()
    # a text that can be written in several ways is right in each: here without the merges
    pieces = [
        [tokenizer.encode(letter)[0] for letter in string]
        for string in written(problem, problem.held_out.demonstration)
    ]
    rows = np.array([[*row, *[-1] * (9 - len(row))] for row in pieces])
    assert (rewarded(problem, problem.held_out, rows) == 1).all()


def test_a_problem_of_ones_own() -> None:
    """The fifteen lines of a user."""
    letters = text.character_tokenizer("abcdefgh:")
    records = [
        {"prompt": f"{word}:", "vowels": sum(c in "ae" for c in word)} for word in ("abe", "ca", "ee", "fgh")
    ]

    def counted(prompt: Any, completion: Any, reference: Any) -> Any:
        """As many letters a as the word has vowels, and then the end."""
        wanted = jnp.arange(completion.shape[0]) < reference["vowels"]
        return jnp.mean((completion == letters.encode("a")[0]) == wanted)

    problem = text.problem(
        "vowels", letters, records, rewards.of_tokens(counted), max_new_tokens=4, held_out=1
    )
    rewards.check(task_of(problem, "prompts"))
    found = rewarded(problem, problem.learn, encoded(problem, ["aa", "a", "a"]))
    np.testing.assert_allclose(found[:, 0], [1, 1, 0.75])
    with pytest.raises(ValueError, match="the task vowels has no demonstrations"):
        task_of(problem, "demonstrations")


def test_completions_are_encoded_after_their_prompts(tmp_path: Path) -> None:
    letters = text.character_tokenizer("abcdefgh> ")
    ids = letters.encode
    spaced = letters._replace(encode=lambda string, add_special_tokens=False: ids(" " + string))
    records = [{"prompt": "ab>", "completion": "ba"}] * 2
    made = text.problem("mine", spaced, records, rewards.exact_match(), held_out=1)
    assert made.learn.tokens.tolist() == [ids(" ab>")]
    assert (
        made.learn.demonstration.tolist() == made.learn.reference["completion"].tolist() == [[*ids("ba"), 1]]
    )
    path = tmp_path / "judged.jsonl"
    lines = [{"prompt": p, "chosen": "ba", "rejected": "cab"} for p in ("ab>", "c>")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = tasks.make("preferences", data=path, held_out=0.5, tokenizer=spaced)
    assert made.preferences is not None
    assert made.preferences[0].completion.tolist() == [[[*ids("ba"), 1, -1], [*ids("cab"), 1]]]
    assert made.max_new_tokens == 4  # as long as the longest, not as they may be


def test_messages_are_prompts() -> None:
    """Through the template, with the prompt of an answer; its end stops a completion too."""
    letters = text.character_tokenizer("abcuv.!")
    ids, stop = letters.encode, letters.encode("!")[0]

    def chat(messages: Any, add_generation_prompt: bool = False) -> text.Chat:
        said = "".join(f"{m['role'][0]}{m['content']}!" for m in messages)
        answers = [m["role"] == "assistant" for m in messages for _ in m["content"] + "!?"]
        return text.Chat(ids(said + "a" * add_generation_prompt), answers)

    silent = lambda tokens, skip_special_tokens=False: letters.decode([t for t in tokens if t != stop])
    talking = letters._replace(chat=chat, decode=silent)
    user, answer = {"role": "user", "content": "b"}, {"role": "assistant", "content": "c."}
    records = [{"messages": [user, answer]}, {"messages": [user]}, {"prompt": [user], "completion": "c."}]
    made = text.problem("mine", talking, records, rewards.exact_match(), held_out=1)
    assert made.stop_ids == (1, stop)
    assert made.learn.tokens.tolist() == [ids("ub!a")] * 2
    assert made.learn.demonstration.tolist() == [ids("c.!"), [-1] * 3]
    assert made.held_out.demonstration.tolist() == [ids("c.!")]
    assert made.learn.reference["completion"].tolist()[0] == [*ids("c."), 1]  # one stop token for all
    assert made.records[0]["completion"] == "c."
    with pytest.raises(ValueError, match=r"record 1: .*has no chat template"):
        text.problem("mine", letters, [{"prompt": "a"}, {"prompt": [user]}], rewards.length())
    with pytest.raises(ValueError, match="record 1 has no prompt that is a string, or messages"):
        text.problem("mine", letters, [{"prompt": "a"}, {"prompt": 3}], rewards.length())


def test_fields_that_no_reward_reads_are_no_burden() -> None:
    letters = text.character_tokenizer("ab>")
    records = [{"prompt": "a>", "completion": "b", "source": "web", "kind": "b"}] * 2
    read = lambda reward: set(text.problem("mine", letters, records, reward, held_out=1).learn.reference)
    assert read(rewards.exact_match(tokens=True)) == {"row", "completion", "kind"}
    assert read(rewards.exact_match()) == {"row", "completion"}


def test_preferences_of_messages(tmp_path: Path) -> None:
    letters = text.character_tokenizer("abcuv.!")

    def chat(messages: Any, add_generation_prompt: bool = False) -> text.Chat:
        said = "".join(f"{m['role'][0]}{m['content']}!" for m in messages)
        answers = [m["role"] == "assistant" for m in messages for _ in m["content"] + "!?"]
        return text.Chat(letters.encode(said + "a" * add_generation_prompt), answers)

    user = [{"role": "user", "content": "b"}]
    answer = lambda said: [{"role": "assistant", "content": said}]
    lines = [
        {"chosen": user + answer("a"), "rejected": user + answer("cc")},
        {"prompt": [{"role": "user", "content": "c"}], "chosen": answer("b"), "rejected": answer("c")},
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="begin with a model whose tokenizer has a chat template"):
        tasks.make("preferences", data=path, held_out=0.5)
    made = tasks.make("preferences", data=path, held_out=0.5, tokenizer=letters._replace(chat=chat))
    assert made.preferences is not None
    both = [(part.tokens.tolist()[0], part.completion.tolist()[0]) for part in made.preferences]
    ids = letters.encode
    assert (ids("ub!a"), [[*ids("a!"), -1], ids("cc!")]) in both
    assert (ids("uc!a"), [[*ids("b!"), -1], [*ids("c!"), -1]]) in both


def test_prompts_without_a_completion_are_no_demonstrations() -> None:
    records = [{"prompt": "a"}, {"prompt": "b", "completion": "aa"}, {"prompt": "c"}, {"prompt": "d"}]
    made = text.problem("some", text.character_tokenizer("abcd"), records, rewards.length(), held_out=1)
    assert made.learn.demonstration is not None
    np.testing.assert_array_equal((np.asarray(made.learn.demonstration) >= 0).sum(axis=1), [0, 3, 0])
    with pytest.raises(ValueError, match="the completion of record 2 is 3: must be a string"):
        text.problem("some", made.tokenizer, [*records[:2], {"prompt": "c", "completion": 3}], made.rewards)
    with pytest.raises(ValueError, match="problem some: size has numbers beyond 32 bits"):
        text.problem("some", made.tokenizer, [{"prompt": "a", "size": 2**31}] * 2, made.rewards)


# from files


def lines(path: Path, *records: Any) -> Path:
    content = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def question(number: int) -> dict[str, str]:
    return {
        "question": f"What is {number} + 1?",
        "answer": f"It is <<{number}+1={number + 1}>>.\n#### {number + 1:,}",
    }


def test_gsm8k(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", *map(question, range(1000, 1030)), {"question": "x", "answer": "y"}, "{")
    lines(tmp_path / "test.jsonl", *map(question, range(1025, 1035)))
    with pytest.warns(
        UserWarning, match="5 questions of train.jsonl are in test.jsonl|2 of 32 entries left out"
    ) as told:
        problem = tasks.make("gsm8k", data=tmp_path, vocab_size=270)
    assert len(told) == 2
    assert (len(problem.learn.tokens), len(problem.held_out.tokens)) == (25, 10)
    assert prompts_of(problem, problem.held_out)[0] == "Question: What is 1025 + 1?\nAnswer:"
    assert written(problem, problem.held_out.demonstration)[0] == " It is .\n#### 1,026"
    assert (rewarded(problem, problem.held_out, problem.held_out.demonstration) == 1).all()
    wrong = encoded(problem, ["#### 7", "1026", "so 1,028.", "1030 then #### 1029.0"] + [""] * 6)
    np.testing.assert_array_equal(rewarded(problem, problem.held_out, wrong)[:, 0], [0, 0, 1, 1] + [0] * 6)
    rewards.check(task_of(problem, "prompts"))
    assert problem.arguments == {"name": "gsm8k", "data": str(tmp_path), "vocab_size": 270}


def test_gsm8k_of_one_file_and_lengths(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl.gz", *map(question, range(20)), question(10**60))
    letters = text.character_tokenizer("".join(map(chr, range(10, 127))))
    options = {"data": path, "tokenizer": letters, "prompt_length": 60, "completion_length": 40}
    with pytest.warns(UserWarning, match=r"1 of \d+ records longer than 60 \+ 40 tokens .*dropped"):
        problem = tasks.make("gsm8k", **options, held_out=0.25, template="{question} ", calculator=True)
    assert len(problem.learn.tokens) + len(problem.held_out.tokens) == 20
    assert problem.max_new_tokens == 40
    assert "<<" in written(problem, problem.learn.demonstration)[0]
    with pytest.raises(ValueError, match="none is left"):
        tasks.make("gsm8k", **options | {"prompt_length": 3})
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        tasks.make("gsm8k", data=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must hold \{question\}"):
        tasks.make("gsm8k", data=path, template="Q")


def dialogue(number: int, answer: str) -> str:
    return f"\n\nHuman: Hello {number}\n\nAssistant: Yes?\n\nHuman: So?\n\nAssistant:{answer}"


def pair(number: int) -> dict[str, str]:
    return {"chosen": dialogue(number, " good"), "rejected": dialogue(number, " bad answer")}


def test_preferences_of_dialogues(tmp_path: Path) -> None:
    odd = [
        {"chosen": dialogue(1, " a"), "rejected": dialogue(2, " b")},
        {"chosen": dialogue(1, " a"), "rejected": dialogue(1, "")},
        {"chosen": dialogue(1, " a"), "rejected": dialogue(1, " a")},
        {"chosen": "a", "rejected": "b"},
        {"chosen": dialogue(1, " a"), "rejected": [dialogue(1, " a")] * 2},
    ]
    path = lines(tmp_path / "pairs.jsonl.gz", *map(pair, range(20)), *odd)
    with pytest.warns(UserWarning, match=r"5 of 25 entries left out: .*:21: the two dialogues differ"):
        problem = tasks.make("preferences", data=str(path), vocab_size=280)
    assert problem.preferences is not None
    assert problem.text is not None
    learnt, new = problem.preferences
    assert (learnt.completion.shape[:2], new.completion.shape[:2]) == ((18, 2), (2, 2))
    assert set(written(problem, learnt.completion[:, 0])) == {" good"}
    assert set(written(problem, learnt.completion[:, 1])) == {" bad answer"}
    begun = written(problem, np.where(new.valid, new.tokens, -1))
    assert begun[0].endswith("So?\n\nAssistant:")
    assert not set(begun) & set(prompts_of(problem, problem.learn))
    assert written(problem, np.asarray(problem.text[1])[None]) == [" good".join([*begun, ""])]
    with pytest.raises(ValueError, match="has no reward"):
        task_of(problem, "prompts")
    task_of(problem, "demonstrations")


def test_preferences_of_prompts_with_weights_and_of_many(tmp_path: Path) -> None:
    letters = text.character_tokenizer("abcdefghijklmnopqrstuvwxyz 0123456789")
    two = [
        {"prompt": f"p {i}", "chosen": "yes", "rejected": "no", "weight": 0.5, "margin": i} for i in range(9)
    ]
    two += [{"prompt": "q", "chosen": "yes", "rejected": "no", "weight": None}]
    two += [{"prompt": "q", "chosen": "yes", "rejected": "no", "weight": -1}]
    two += [{"prompt": "q", "chosen": "yes", "rejected": "no", "margin": "much"}]
    path = lines(tmp_path / "two.jsonl", *two)
    with pytest.warns(UserWarning, match=r"2 of 12 entries left out: .*weight = -1.*margin = 'much'"):
        problem = tasks.make("preferences", data=path, tokenizer=letters)
    assert problem.preferences is not None
    both = [
        np.concatenate([getattr(part, field) for part in problem.preferences])
        for field in ("weight", "margin")
    ]
    assert sorted(both[0]) == [0.5] * 9 + [1]
    assert sorted(both[1]) == [0, *range(9)]
    many = [{"prompt": f"p {i}", "completions": ["best", "good", "bad"]} for i in range(4)]
    problem = tasks.make("preferences", data=lines(tmp_path / "many.jsonl", *many), tokenizer=letters)
    assert problem.preferences is not None
    assert written(problem, problem.preferences[0].completion[0]) == ["best", "good", "bad"]
    mixed = lines(tmp_path / "mixed.jsonl", *many, *two[:3])
    with pytest.raises(
        ValueError, match="has 2 to 3 completions per prompt: must be as many in each line, two where"
    ):
        tasks.make("preferences", data=mixed, tokenizer=letters)
    one = lines(tmp_path / "one.jsonl", {"prompt": "p", "completions": ["only"]})
    with pytest.raises(ValueError, match=r"no usable line in .*must be a list of two strings or more"):
        tasks.make("preferences", data=one)


def test_labels_of_single_completions(tmp_path: Path) -> None:
    letters = text.character_tokenizer("abcdefghijklmnopqrstuvwxyz 0123456789")
    told = [{"prompt": f"p {i}", "completion": f"c {i}", "label": i % 3 > 0} for i in range(9)]
    wrong = {"prompt": "q", "completion": "c", "label": 1}
    with pytest.warns(UserWarning, match=r"1 of 10 entries left out: .*label = 1: must be true or false"):
        problem = tasks.make("preferences", data=lines(tmp_path / "a.jsonl", *told, wrong), tokenizer=letters)
    assert problem.preferences is not None
    found = {
        written(problem, completion)[0]: bool(label)
        for part in problem.preferences
        for completion, label in zip(part.completion, part.desirable, strict=True)
    }
    assert found == {f"c {i}": i % 3 > 0 for i in range(9)}
    shown = demonstrations(problem.learn)
    assert shown is not None
    ways = written(problem, np.where(shown.mask, shown.completion, -1))
    assert sorted(ways) == sorted(
        written(problem, problem.preferences[0].completion[np.asarray(problem.preferences[0].desirable), 0])
    )  # what is not desirable is nothing to imitate
    assert problem.text is not None
    assert sum(each.size for each in problem.text) == 6 * len(letters.encode("p 0c 0")) + 6
    pair = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    with pytest.raises(ValueError, match=r"1 to 2 completions per prompt.*one where lines have a label"):
        tasks.make("preferences", data=lines(tmp_path / "b.jsonl", *told, pair), tokenizer=letters)


def test_instructions_of_alpaca_are_prompts() -> None:
    one = {"instruction": "Add.", "input": "1 {2}", "output": "3", "answer": 3}
    two = {"instruction": "Greet.", "input": "", "output": "Hi"}
    letters = text.character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
        "### Input:\n1 {2}\n\n### Response:\n"
    )
    for record in (one, {**one, "text": "all of it"}):
        example = data.example(record, letters)
        assert letters.decode(example.tokens.tolist(), skip_special_tokens=True) == prompt + "3"
        assert example.mask.sum() == 2  # with the end
    made = text.problem("alpaca", letters, [two, one], rewards.exact_match(), held_out=1)
    assert made.records[1] == one | {"prompt": prompt, "completion": "3"}
    assert made.records[0]["prompt"].endswith("request.\n\n### Instruction:\nGreet.\n\n### Response:\n")
    assert written(made, made.learn.demonstration) == ["Hi"]
    with pytest.raises(ValueError, match="input is a list, must be a string"):
        data.example({**one, "input": [1]}, letters)


def test_folds_hold_each_prompt_out_once(tmp_path: Path) -> None:
    letters = text.character_tokenizer("prompt 0123456789yesno")
    records = [{"prompt": f"p {i // 2}", "chosen": "yes", "rejected": f"no{i % 2}"} for i in range(40)]
    path = lines(tmp_path / "pairs.jsonl", *records)
    seen = []
    for fold in range(5):
        problem = tasks.make("preferences", data=path, tokenizer=letters, folds=5, fold=fold)
        out = prompts_of(problem, problem.held_out)
        assert len(out) == 8
        assert not set(out) & set(prompts_of(problem, problem.learn))
        seen += out
    assert sorted(seen) == sorted(record["prompt"] for record in records)
    for wrong in ({"folds": 5, "fold": 5}, {"folds": 1}, {"folds": 21}, {"fold": 1}):
        with pytest.raises(ValueError, match=r"folds = .*must be 2 to the 20 different prompts"):
            tasks.make("preferences", data=path, tokenizer=letters, **wrong)
    with pytest.raises(ValueError, match=r"held_out = 1.5: must be above 0 and below 1"):
        tasks.make("preferences", data=path, tokenizer=letters, held_out=1.5)


def test_what_is_held_out_depends_on_the_group_and_the_seed_alone() -> None:
    groups = [f"g{i}" for i in range(100)]
    one = files.held(groups, 0.3, 0, 0, 0)
    np.testing.assert_array_equal(files.held(groups[::-1], 0.3, 0, 0, 0)[::-1], one)
    assert one.sum() == 30
    assert (files.held(groups, 0.3, 0, 0, 1) != one).any()


def test_translation(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    content = ["1\t2", "Go.\tGeh.\tx", "Hi.\tHallo!", "Hi.\tGruss!", "Hi.\tHallo!", "no tab", "\tx"]
    content += [f"Number {i}.\tZahl {i}." for i in range(20)]
    path = lines(tmp_path / "deu.txt.gz", *content)
    with pytest.warns(
        UserWarning, match="2 of 27 entries left out: .*:6: needs two texts with a tab between"
    ):
        problem = tasks.make("translation", data=path, vocab_size=270, held_out=0.2)
    assert len(problem.held_out.tokens) == 4
    learnt, new = prompts_of(problem, problem.learn), prompts_of(problem, problem.held_out)
    assert not set(learnt) & set(new)
    assert len(set(new)) == 4
    assert all(prompt.endswith(".\n") for prompt in learnt + new)
    several = [record["references"] for record in problem.records if record["prompt"] == "Hi.\n"]
    assert several[0] == ["Hallo!", "Gruss!"]
    np.testing.assert_allclose(rewarded(problem, problem.held_out, problem.held_out.demonstration), 1)
    assert (rewarded(problem, problem.held_out, encoded(problem, [""] * 4)) == 0).all()
    back = lines(tmp_path / "own.jsonl", *({"source": f"a{i}", "target": f"b{i}"} for i in range(9)))
    letters = text.character_tokenizer("ab0123456789\n")
    problem = tasks.make("translation", data=back, swap=True, tokenizer=letters, limit=5, held_out=0.2)
    assert (len(problem.learn.tokens), len(problem.held_out.tokens)) == (4, 1)
    assert prompts_of(problem, problem.learn)[0].startswith("b")


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"question": "a"}\n' * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="is no whole gzip file"):
        tasks.make("gsm8k", data=tmp_path / "cut.jsonl.gz")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"no usable line in .*:1: not UTF-8"):
        tasks.make("gsm8k", data=tmp_path / "bytes.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="is a list, must be an object with keys"):
        tasks.make("preferences", data=tmp_path / "list.jsonl")
    few = lines(tmp_path / "few.jsonl", pair(1), pair(2))
    assert 258 < tasks.make("preferences", data=few).tokenizer.vocab_size < 2048  # as many as there are


# real files


@needs_data
def test_real_gsm8k() -> None:
    problem = tasks.make("gsm8k", data=SHARED / "gsm8k", prompt_length=400, completion_length=400)
    assert (len(problem.learn.tokens), len(problem.held_out.tokens)) == (7473, 1319)
    some = jax.tree.map(lambda x: x[:200], problem.held_out)
    assert (rewarded(problem, some, some.demonstration) == 1).all()


@needs_data
def test_real_preferences() -> None:
    path = SHARED / "hh_rlhf" / "harmless-base-test.jsonl.gz"
    with pytest.warns(UserWarning, match="dropped|left out") as told:
        problem = tasks.make("preferences", data=path, folds=5, fold=2)
    assert next(str(warning.message).split(" entries")[0] for warning in told) == "9 of 2312"
    assert len(told) == 2
    assert problem.preferences is not None
    sizes = [len(part.tokens) for part in problem.preferences]
    assert sum(sizes) > 2150
    assert 0.18 < sizes[1] / sum(sizes) < 0.22


@needs_data
def test_real_translation() -> None:
    pytest.importorskip("sacrebleu")
    problem = tasks.make(
        "translation", data=SHARED / "tatoeba_en_de" / "deu.txt.gz", limit=4000, vocab_size=512
    )
    learnt, new = prompts_of(problem, problem.learn), prompts_of(problem, problem.held_out)
    assert not set(learnt) & set(new)
    np.testing.assert_allclose(rewarded(problem, problem.held_out, problem.held_out.demonstration), 1)
