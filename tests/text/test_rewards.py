"""Rewards: of text in processes that hang, raise and die, ready ones, their sum, and what is refused."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljax import text
from rljax.text import rewards
from rljax.text.problem import task as task_of
from rljax.types import Prompts, Reward, Scores, Task

LETTERS = text.character_tokenizer("abcdefghijklmnopqrstuvwxyz >")
FUNCTIONS = """
import os, sys, time

def length(prompt, completion, record):
    return len(completion)

def process(prompt, completion, record):
    return os.getpid()

def knows_jax(prompt, completion, record):
    return "jax" in sys.modules

def odd(prompt, completion, record):
    if completion == "loop":
        while True:
            pass
    if completion == "raise":
        raise KeyError("no such\\nthing")
    if completion == "exit":
        sys.exit(3)
    if completion == "die":
        os._exit(7)
    if completion == "once" and not os.path.exists(record):
        open(record, "w").close()
        os._exit(1)
    return {"half": 0.5, "minus": -2, "nan": float("nan"), "yes": True}.get(completion, 1.0)

def answers(prompt, completion, record):
    return record
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user, without JAX."""
    (tmp_path / "user_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_rewards", raising=False)
    import user_rewards  # pyright: ignore[reportMissingImports]

    return user_rewards


def ask(reward: Reward, completions: list[str], records: list[Any] | None = None) -> tuple[Any, Any]:
    return reward.apply([""] * len(completions), completions, records or [None] * len(completions))[:2]


def test_values_come_back_in_order_whatever_they_are(functions: Any) -> None:
    values, failed = ask(rewards.of_text(functions.odd, processes=2), ["half", "minus", "nan", "yes", "x"])
    np.testing.assert_array_equal(values, np.array([0.5, -2, np.nan, 1, 1], np.float32))
    assert values.dtype == np.float32
    assert failed.dtype == bool
    assert not failed.any()


def test_one_bad_completion_does_not_harm_the_others(functions: Any) -> None:
    reward = rewards.of_text(functions.odd, processes=2, timeout=0.5, on_failure=-1.0)
    words = ["half"] * 20 + ["loop", "raise", "exit", "die"] + ["half"] * 20
    message = r"reward odd failed for 4 of 44 completions \(.*\): they score -1; failures are"
    with pytest.warns(UserWarning, match=message):
        values, failed = ask(reward, words)
    bad = np.isin(words, ["loop", "raise", "exit", "die"])
    np.testing.assert_array_equal(failed, bad)
    np.testing.assert_array_equal(values, np.where(bad, -1.0, 0.5))
    values, failed = ask(reward, ["loop"])  # told once, counted always
    assert failed.all()
    assert values[0] == -1.0


def test_a_failure_is_nan_and_tried_once_more(functions: Any, tmp_path: Path) -> None:
    reward = rewards.of_text(functions.odd, processes=1)
    values, failed = ask(reward, ["once", "half"], [str(tmp_path / "mark")] * 2)
    assert not failed.any()
    assert values.tolist() == [1.0, 0.5]
    with pytest.warns(UserWarning, match=r"KeyError: 'no such\\nthing'\): they are left out"):
        values, failed = ask(reward, ["raise", "half"])
    assert np.isnan(values[0])
    assert failed.tolist() == [True, False]


def test_processes_are_kept_and_know_no_jax(functions: Any) -> None:
    reward = rewards.of_text(functions.process, processes=1)
    values, _ = ask(reward, ["a"] * 64)
    again, _ = ask(reward, ["a"] * 64)
    assert set(values) == set(again)
    assert os.getpid() not in values
    assert len(set(values)) == 1
    assert ask(rewards.of_text(functions.knows_jax, processes=1), ["a"])[0][0] == 0


def test_a_huge_batch(functions: Any) -> None:
    words = ["x" * (i % 300) for i in range(20_000)]
    values, failed = ask(rewards.of_text(functions.length, processes=2), words)
    np.testing.assert_array_equal(values, [len(word) for word in words])
    assert not failed.any()
    assert ask(rewards.of_text(functions.length, processes=2), ["x" * 3_000_000, ""])[0].tolist() == [3e6, 0]


def test_a_pool_ends_with_its_reward(functions: Any) -> None:
    reward = rewards.of_text(functions.process, processes=1)
    pid = int(ask(reward, ["a"])[0][0])
    assert alive(pid)
    here = weakref.ref(reward.apply)
    del reward
    assert here() is None
    assert gone(pid)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("1", r"reward answers returned str '1': must be one number or a boolean"),
        ([1.0], r"reward answers returned list \[1.0\]: must be one number"),
        ({}, r"reward answers returned dict \{\}"),
        (np.ones(2), "reward answers returned ndarray"),
        (1j, "reward answers returned complex 1j"),
    ],
)
@pytest.mark.parametrize("processes", [0, 1])
def test_a_wrong_type_is_said(functions: Any, record: Any, message: str, processes: int) -> None:
    reward = rewards.of_text(functions.answers, processes=processes)
    with pytest.raises(TypeError, match=message):
        ask(reward, ["a"] * 2, [0.0, record])
    assert ask(reward, ["a"] * 2, [1, np.float32(0.5)])[0].tolist() == [1, 0.5]  # and it goes on


def test_numbers_that_are_none_of_float32(functions: Any) -> None:
    for value in (float("inf"), 1e300):
        with pytest.raises(ValueError, match="reward answers returned an infinite number"):
            ask(rewards.of_text(functions.answers, processes=0), ["a"], [value])


def test_a_lambda_is_told_of_its_name_at_once() -> None:
    """One error says all that is missing, and what it says is enough."""
    mine = lambda prompt, completion, record: 1.0
    with pytest.raises(ValueError, match=r'has no name: pass name="..." and processes=0') as caught:
        rewards.of_text(mine)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r'has no name: pass name="..."$'):
        rewards.of_text(mine, processes=0)
    assert rewards.of_text(mine, name="mine", processes=0).name == "mine"


def test_what_another_process_cannot_have(functions: Any) -> None:
    with pytest.raises(ValueError, match="other processes cannot import the function: define it at the top"):
        rewards.of_text(lambda prompt, completion, record: 1.0, "constant")
    with pytest.raises(TypeError, match="a record cannot be sent to another process"):
        ask(rewards.of_text(functions.length, processes=1), ["a"], [{"f": lambda: 0}])
    here = rewards.of_text(lambda prompt, completion, record: len(prompt + completion), "sum", processes=0)
    assert here.apply(["ab"], ["c"], [None])[0] == 3


def test_a_function_of_a_module_that_fails(tmp_path: Path, functions: Any, monkeypatch: Any) -> None:
    reward = rewards.of_text(functions.length, processes=1)
    (tmp_path / "user_rewards.py").write_text("raise ImportError('not twice')")
    with pytest.raises(RuntimeError, match=r"reward length: a worker process cannot load .*not twice"):
        ask(reward, ["a"])


def test_in_the_own_process_failures_count_too(functions: Any) -> None:
    reward = rewards.of_text(functions.odd, processes=0, on_failure=0.0)
    with pytest.warns(UserWarning, match="failed for 2 of 3"):
        values, failed = ask(reward, ["raise", "exit", "half"])
    assert values.tolist() == [0, 0, 0.5]
    assert failed.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": -1}, "processes = -1: must be None or at least 0"),
        ({"timeout": 0}, "timeout = 0.*above 0"),
        ({"on_failure": float("inf")}, "on_failure = inf.*a number or NaN"),
    ],
)
def test_options_are_checked(functions: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.of_text(functions.length, **options)


SCRIPT = """
    import os, signal, sys
    from rljax.text import rewards

    def forever(prompt, completion, record):
        print(os.getpid(), flush=True)
        while True:
            pass

    if __name__ == "__main__":
        # whoever runs the tests may ignore or block the signal, as nohup does, and children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        reward = rewards.of_text(forever, processes=2, timeout=600)
        reward.apply([""] * 2, ["a"] * 2, [None] * 2)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """Also: a function of the script itself, which is run again under another name."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers: set[int] = set()
    try:
        assert parent.stdout is not None
        workers |= {int(parent.stdout.readline()) for _ in range(2)}
        assert len(workers) == 2
        assert all(map(alive, workers))
        parent.send_signal(how)
        assert parent.wait(30) != 0
        assert all(map(gone, workers))
    finally:
        parent.kill()
        parent.communicate()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


GRANDCHILD = """
    import subprocess
    import sys

    def executes(prompt, completion, record):
        child = subprocess.Popen([sys.executable, "-c", completion])
        with open(record, "a") as file:
            file.write(f"{child.pid}\\n")
        return float(child.wait())
"""


def test_what_a_function_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grandchildren.py").write_text(textwrap.dedent(GRANDCHILD))
    monkeypatch.syspath_prepend(tmp_path)
    import grandchildren  # pyright: ignore[reportMissingImports]

    reward = rewards.of_text(grandchildren.executes, processes=1, timeout=1.0)
    with pytest.warns(UserWarning, match="no result in 1 s"):
        _, failed = ask(reward, ["while True: pass"], [str(tmp_path / "pids")])
    assert failed.tolist() == [True]
    started = [int(line) for line in (tmp_path / "pids").read_text().split()]
    try:
        assert len(started) == 2  # it is tried twice
        assert all(map(gone, started))
    finally:
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize(
    ("string", "value"),
    [
        ("The answer is 42.", 42),
        ("#### 1,234", 1234),
        ("first 7, then #### -3 and 9", -3),
        ("#### 3 then #### $5.50", 5.5),
        ("costs $1,234,567.25 in all", 1234567.25),
        ("-$7", -7),
        ("$-7", -7),
        ("10 - 3", 3),
        ("10-3", 3),
        ("x = -3", -3),
        ("is 3/4", 0.75),
        ("is -3/4", -0.75),
        ("7/0", None),
        ("50%", 50),
        ("1,2", 2),
        ("12,3456", 3456),
        (".5", 0.5),
        ("v1.2.3", 3),
        ("2e3", 2000),
        ("\u22128", -8),
        ("", None),
        ("none at all", None),
        ("7 and then ####", None),
        ("=12=", 12),
        ("1" * 5000, float("inf")),
        ("#### 2e999", float("inf")),
        ("-1e400", -float("inf")),
        ("1e-400", 0),
    ],
)
def test_numbers_are_read(string: str, value: float | None) -> None:
    assert rewards.number(string) == value


def test_ready_rewards() -> None:
    record = {"completion": "ab ", "answer": "so 3 * 4 = 12\n#### 12"}
    ask_one = lambda reward, words: ask(reward, words, [record] * len(words))[0].tolist()
    assert ask_one(rewards.exact_match(), ["ab", " ab", "abc"]) == [1, 1, 0]
    assert ask_one(rewards.numeric_answer(), ["12", "11 12.0", "12 13", "no", "12.1"]) == [1, 1, 0, 0, 0]
    assert ask_one(rewards.numeric_answer(tolerance=0.1), ["12.1"]) == [1]
    assert ask_one(rewards.pattern(r"^\d+$"), ["12", "a12"]) == [1, 0]
    with pytest.raises(ValueError, match="is no regular expression"):
        rewards.pattern("(")
    with pytest.raises(ValueError, match="reward numeric_answer: a record of the task has no field answer"):
        ask(rewards.numeric_answer(), ["1"], [{"completion": "1"}])


@given(st.text(alphabet="0123456789.,eE/$+-#% \u2212\u0663a", max_size=30))
def test_whatever_a_policy_writes_is_read(string: str) -> None:
    found = rewards.number(string)
    assert found is None or isinstance(found, float)


def test_a_number_beyond_all_is_a_wrong_answer_and_no_failure() -> None:
    answers = ["1e400", "#### 2e999", "-1e400", "1e400/1e400", "7"]
    values, failed = ask(rewards.numeric_answer(), answers, [{"answer": "7"}] * 5)
    assert values.tolist() == [0, 0, 0, 0, 1]
    assert not failed.any()
    with pytest.warns(UserWarning, match="holds no finite number"):
        assert np.isnan(ask(rewards.numeric_answer(), ["5"], [{"answer": "1e400"}])[0][0])


def test_one_stop_token_stands_for_all() -> None:
    written = jnp.array([[5, 6, 1], [5, 6, 2], [5, 2, -1], [5, 6, 7]])
    ended = rewards.one_stop((1, 2), written)
    assert ended.tolist() == [[5, 6, 1], [5, 6, 1], [5, 1, -1], [5, 6, 7]]
    assert rewards.one_stop((1,), written) is written
    reference = {"completion": jnp.broadcast_to(jnp.array([5, 6, 1]), (4, 3))}
    assert rewards.exact_match(tokens=True).apply(None, written, ended, reference).tolist() == [1, 1, 0, 0]


def test_a_regular_expression_that_takes_for_ever() -> None:
    reward = rewards.pattern(r"^(a+)+$", timeout=1.0)
    with pytest.warns(UserWarning, match="no result in 1 s"):
        values, failed = ask(reward, ["a" * 40 + "!", "aaa"])
    assert values.tolist() == [0, 1]  # it was not found
    assert failed.tolist() == [True, False]


def test_code_that_hangs_or_fails_is_a_bad_answer(functions: Any) -> None:
    reward = rewards.of_code(functions.odd, processes=2, timeout=0.5)
    with pytest.warns(UserWarning, match="failed for 3 of 4 .*: they score 0;"):
        values, failed = ask(reward, ["loop", "raise", "die", "half"])
    assert values.tolist() == [0, 0, 0, 0.5]
    assert failed.tolist() == [True, True, True, False]
    assert np.isfinite(rewards.combine(values[:, None], jnp.ones(1), 1)).all()  # it is learnt from
    with pytest.raises(ValueError, match="processes = 0: code is executed in other processes"):
        rewards.of_code(functions.odd, processes=0)


@pytest.mark.parametrize("processes", [0, 1])
def test_none_says_that_a_reward_does_not_apply(functions: Any, processes: int) -> None:
    apply = rewards.of_text(functions.answers, processes=processes).apply
    values, failed, absent = apply([""] * 3, [""] * 3, [None, 0.5, float("nan")])
    np.testing.assert_array_equal(values, np.array([np.nan, 0.5, np.nan], np.float32))
    assert absent.tolist() == [True, False, False]
    assert not failed.any()


def test_the_other_rewards_of_a_completion_are_added_up() -> None:
    """As TRL's nansum; a completion to which none applies is unscored, and so is one with a failure."""
    nan = np.nan
    values = jnp.array([[1.0, nan, 4.0], [nan, nan, nan], [nan, 2.0, 4.0], [1.0, 2.0, nan]])
    absent = jnp.array([[0, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    weights = jnp.array([2.0, 3.0, 1.0])
    found = rewards.combine(values, weights, 1, absent=absent)
    np.testing.assert_array_equal(found, [6.0, nan, 10.0, nan])
    alone = rewards.combine(values[:1], jnp.array([0.0, 3.0, 0.0]), 1, absent=absent[:1])
    assert np.isnan(alone).all()
    # of the first reward, 1 and 3 are standardised without the row that it does not apply to
    pair = jnp.array([[1.0, 5.0], [3.0, 5.0], [nan, 5.0]])
    found = rewards.combine(pair, jnp.ones(2), 3, "group", jnp.isnan(pair))
    np.testing.assert_allclose(found, [-(0.5**0.5), 0.5**0.5, 0.0], rtol=1e-3)


def test_rewards_of_translation_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said, right = ["the cat sat", "a dog", ""], ["the cat sat", "the dog barks", "x"]
    records = [{"completion": each} for each in right]
    expected = [sacrebleu.sentence_chrf(a, [b]).score / 100 for a, b in zip(said, right, strict=True)]
    np.testing.assert_allclose(ask(rewards.chrf(), said, records)[0], expected, rtol=1e-6)
    plus = [
        sacrebleu.sentence_chrf(a, [b], word_order=2).score / 100 for a, b in zip(said, right, strict=True)
    ]
    np.testing.assert_allclose(ask(rewards.chrf(word_order=2), said, records)[0], plus, rtol=1e-6)
    expected = [sacrebleu.sentence_bleu(a, [b]).score / 100 for a, b in zip(said, right, strict=True)]
    np.testing.assert_allclose(ask(rewards.bleu(), said, records)[0], expected, rtol=1e-6)
    several = [{"many": ["nothing alike", "the cat sat"]}]
    assert ask(rewards.chrf("many"), said[:1], several)[0] == 1
    assert ask(rewards.bleu("many"), said[:1], several)[0] == pytest.approx(1)


def test_bleu_cuts_words_as_it_is_told() -> None:
    pytest.importorskip("sacrebleu")
    said, right = "\u4eca\u5929\u5929\u6c14\u5f88\u597d", "\u4eca\u5929\u5929\u6c14\u4e0d\u9519"
    score = lambda reward: float(ask(reward, [said], [{"completion": right}])[0][0])
    from sacrebleu.metrics.bleu import BLEU

    wanted = BLEU(effective_order=True, tokenize="zh").sentence_score(said, [right]).score / 100
    assert score(rewards.bleu()) == 0
    np.testing.assert_allclose(score(rewards.bleu(tokenize="zh")), wanted, rtol=1e-6)
    assert wanted > 0.4
    with pytest.raises(ValueError, match=r"bleu: tokenize = 'words': must be one of .*13a"):
        rewards.bleu(tokenize="words")


def test_translation_without_sacrebleu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "rljax\[text\]"'):
        rewards.chrf()


# the sum of several


def test_raw_is_the_weighted_sum() -> None:
    values = np.array([[1.0, np.nan, 2.5], [-1.0, 4.0, np.nan]], np.float32)
    found = rewards.combine(jnp.asarray(values), jnp.array([2.0, 0.0, -1.0]), 1, "raw")
    np.testing.assert_allclose(found, [-0.5, np.nan])


def test_group_is_each_standardised_within_its_prompt() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    weights = np.array([1.0, 0.5, -2.0], np.float32)
    grouped = values.reshape(3, 4, 3)
    deviation = grouped.std(1, ddof=1, keepdims=True) + 1e-4
    expected = ((grouped - grouped.mean(1, keepdims=True)) / deviation).reshape(12, 3) @ weights
    found = jax.jit(rewards.combine, static_argnums=(2, 3))(values, weights, 4, "group")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_a_value_leaves_its_group_alone() -> None:
    values = jnp.array([[1.0], [np.nan], [3.0], [5.0], [5.0], [np.nan]])
    found = rewards.combine(values, jnp.ones(1), 3, "group")
    half = 1 / (np.sqrt(2) + 1e-4)
    np.testing.assert_allclose(found, [-half, np.nan, half, 0, 0, np.nan], rtol=1e-6)


@pytest.mark.parametrize(("group", "how"), [(5, "raw"), (1, "group"), (0, "raw")])
def test_groups_must_fit(group: int, how: Any) -> None:
    with pytest.raises(ValueError, match=f"group = {group}: must divide the 6 completions"):
        rewards.combine(jnp.zeros((6, 2)), jnp.ones(2), group, how)


# between the programs


def test_decoded_leaves_out_what_is_no_text() -> None:
    eos = LETTERS.eos_id
    rows = np.array([[3, 4, eos, -1], [-1, -1, 5, 6], [-1, -1, -1, -1], [4, 999, 5, eos]])
    words = [LETTERS.decode(ids) for ids in ([3, 4], [5, 6], [], [4, 5])]
    assert rewards.decoded(LETTERS, rows) == words


def test_decoded_after_a_prompt_keeps_the_space_that_a_tokenizer_drops() -> None:
    drops = LETTERS._replace(decode=lambda ids, **options: LETTERS.decode(ids, **options).removeprefix(" "))
    prompt, completion = [LETTERS.encode("ab")], [LETTERS.encode(" cd")]
    assert rewards.decoded(drops, completion) == ["cd"]
    assert rewards.decoded(drops, completion, after=prompt) == [" cd"]


def problem(reward: Any, **changes: Any) -> Task:
    records = [{"prompt": f"{word}>", "completion": word[::-1]} for word in ("ab", "abc", "bca", "cab")]
    return task_of(text.problem("small", LETTERS, records, reward), "prompts")._replace(**changes)


def test_on_host_fills_the_columns_of_the_host() -> None:
    both = [rewards.length(), rewards.exact_match()]
    task = problem(both)
    prompts = np.where(task.learn.valid, task.learn.tokens, -1)
    completions = np.array(task.learn.demonstration)
    completions[1, 0] = LETTERS.encode("z")[0]
    rows = np.asarray(task.learn.reference["row"])
    before = Scores(jnp.array([[0.25, np.nan]] * 3), jnp.zeros((3, 2), bool))
    after = rewards.on_host(task, prompts, completions, rows, before)
    np.testing.assert_array_equal(after.values, [[0.25, 1], [0.25, 0], [0.25, 1]])
    assert not after.failed.any()
    assert np.isnan(before.values[:, 1]).all()
    only = problem(rewards.exact_match(tokens=True))
    assert rewards.on_host(only, prompts, completions, rows, before) is before


def test_special_tokens_are_shown_where_they_are_asked_for() -> None:
    asked: dict[str, list[str]] = {"with": [], "without": []}
    looks = {
        name: rewards.of_text(
            lambda prompt, completion, record, name=name: asked[name].append(completion) or 1.0,
            name,
            processes=0,
            special_tokens=name == "with",
        )
        for name in asked
    }
    task = problem(list(looks.values()))
    prompts = np.where(task.learn.valid, task.learn.tokens, -1)
    scores = Scores(jnp.full((3, 2), jnp.nan), jnp.zeros((3, 2), bool))
    rewards.on_host(task, prompts, task.learn.demonstration, np.arange(3), scores)
    end = LETTERS.decode([LETTERS.eos_id])
    assert end
    assert asked["without"] == ["ba", "cba", "acb"]
    assert asked["with"] == [f"{word}{end}" for word in asked["without"]]


def test_on_host_refuses_another_shape() -> None:
    wrong = Reward("wrong", lambda prompts, completions, records: (np.zeros(2),) * 3, host=True)
    task = problem(wrong)
    scores = Scores(jnp.full((3, 1), jnp.nan), jnp.zeros((3, 1), bool))
    with pytest.raises(ValueError, match=r"reward wrong returned \(2,\), \(2,\), \(2,\): .*shape \(3,\)"):
        rewards.on_host(task, task.learn.tokens, task.learn.demonstration, np.arange(3), scores)


def test_rewards_of_the_host_are_tried_once_before_anything_is_compiled() -> None:
    told = []

    def counted(prompt: str, completion: str, record: Any) -> float:
        told.append((prompt, completion, record))
        return 1.0

    task = problem(rewards.of_text(counted, processes=0))
    rewards.tried(task)
    assert [each[2] for each in told] == [task.records[0]]
    rewards.tried(problem(rewards.length()))  # of which there is none
    wordy = rewards.of_text(lambda *_: "good", "wordy", processes=0)  # pyright: ignore
    with pytest.raises(TypeError, match="reward wordy"):
        rewards.tried(problem(wordy))
    lacking = rewards.of_text(counted, processes=0, fields=("answers",))
    with pytest.raises(ValueError, match="a record of the task has no field answers"):
        rewards.tried(problem(lacking))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        rewards.tried(task._replace(tokenizer=None))


# what is refused


def token_reward(function: Callable[..., Any], name: str = "own") -> Reward:
    return rewards.of_tokens(function, name)


def test_good_tasks_pass() -> None:
    counted = token_reward(lambda prompt, completion, reference: jnp.sum(completion >= 0), "tokens")
    right = token_reward(
        lambda prompt, completion, reference: completion[0] == reference["completion"][0], "a-b.c"
    )
    rewards.check(problem([rewards.exact_match(), rewards.length(), counted, right]))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ((), "the task small has no reward"),
        (token_reward(lambda p, c, r: c * 1.0), r"reward own gives float32\[5, 4\] for 5 completions"),
        (Reward("sum", lambda w, p, c, r: c.sum()), r"reward sum gives int32\[\] for 5 completions"),
        (Reward("text", lambda w, p, c, r: "good"), "reward text .*must be one number or boolean|fails"),
        (token_reward(lambda p, c, r: c.sum() * 1j), r"reward own gives complex64\[5\]"),
        (token_reward(lambda p, c, r: r["answer"]), "KeyError: 'answer'; the reference has .*completion"),
        (token_reward(lambda p, c, r: 1.0 if c[0] > 3 else 0.0), "reward own fails: TracerBool"),
        ([rewards.length(), rewards.length(3)], "two rewards are named length"),
        (token_reward(lambda p, c, r: 1.0, "my reward"), "reward 'my reward': its name must be"),
        (token_reward(lambda p, c, r: 1.0, "a/b"), "its name must be"),
        (rewards.length(weight=float("nan")), "reward length: weight = nan: must be one finite number"),
        (rewards.length(weight="much"), "reward length: weight = 'much'"),  # pyright: ignore
    ],
)
def test_bad_rewards_are_one_line(reward: Any, message: str) -> None:
    task = problem(rewards.length())._replace(
        rewards=(reward,) if isinstance(reward, Reward) else tuple(reward)
    )
    with pytest.raises(ValueError, match=message) as caught:
        rewards.check(task)
    assert "\n" not in str(caught.value)


def test_tasks_that_lack_something_are_one_line() -> None:
    task = problem(rewards.exact_match())
    no_row = task.learn._replace(reference={})
    empty = task.learn._replace(valid=jnp.asarray(task.learn.valid).at[1].set(False))
    for change, message in [
        ({"tokenizer": None}, "computed on the host, so the task small needs a tokenizer"),
        ({"records": ()}, "needs records"),
        ({"records": [{}]}, "needs as many records as `row` says: there are 1"),
        ({"learn": no_row}, "needs a reference with `row`"),
        ({"learn": empty}, "prompt 1 of learn is empty"),
        ({"vocab_size": 3}, "the task small: prompts of learn have tokens .*for a vocabulary of 3"),
        ({"learn": jnp.arange(3)}, "the task small has no prompts: learn is a"),
        ({"learn": Prompts(jnp.zeros((0, 2), int), jnp.zeros((0, 2), bool))}, "learn has no prompts"),
        ({"observe": lambda context, step, reference: context}, "observe of the task small gives"),
        ({"observe": lambda context, step: step}, "observe of the task small fails: TypeError"),
    ]:
        with pytest.raises(ValueError, match=message):
            rewards.check(task._replace(**change))


def test_traced_arrays_are_not_looked_into() -> None:
    task = problem(rewards.length())

    @jax.jit
    def checked(valid: Any, weight: Any) -> Any:
        reward = task.rewards[0]._replace(weight=weight)
        rewards.check(task._replace(learn=task.learn._replace(valid=valid), rewards=(reward,)))
        return weight

    assert checked(task.learn.valid, 2.0) == 2


def test_texts_are_scored_by_any_reward() -> None:
    tokenizer = text.character_tokenizer("abc")
    longer = rewards.of_tokens(lambda prompt, completion, reference: (completion >= 0).sum(), "longer")
    scores = rewards.score_texts(longer, ["a", "ab"], ["abc", "c"], tokenizer=tokenizer)
    assert scores.tolist() == [4, 2]  # with the end token
    records = [{"completion": "b"}, {"completion": "c"}]
    assert rewards.score_texts(rewards.exact_match(), ["a", "a"], ["b", "b"], records=records).tolist() == [
        1,
        0,
    ]
    assert rewards.score_texts(longer, [], []).shape == (0,)
    with pytest.raises(ValueError, match=r"^1 prompts and 2 completions: give as many of both$"):
        rewards.score_texts(longer, ["a"], ["b", "c"])
    with pytest.raises(
        ValueError, match=r"^reward longer is of tokens, and has no tokenizer: give tokenizer=$"
    ):
        rewards.score_texts(longer, ["a"], ["b"])
