"""The command line: what it hands to the library, what it prints, and how it fails."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rljax
from rljax import algorithms, cli, text
from rljax.algorithms import ppo
from rljax.checks import RunError
from rljax.cli import listing, options, printing
from rljax.learning.fields import comments_of, fields_of
from rljax.runs import load, presets, report
from rljax.runs.recorder import Result
from rljax.runs.sweep import SweepResult

RETURN = {"mean": 487.25, "iqm": 500.0, "ci95": [470.5, 500.0], "per_seed": [1.0] * 8, "episodes": 128}
SUMMARY = {
    "algorithm": "ppo",
    "unit": "environment steps",
    "env": "CartPole-v1",
    "steps": 507_904,
    "seeds": 8,
    "headline": "return",
    "return": RETURN,
    "steps_per_second": 1_234_567.0,
    "compile_seconds": 3.21,
    "startup": {"seconds": 5.04, "import": 1.0, "trace": 0.7, "compile": 2.51, "programs": 2, "cached": 1},
    "device": "a machine",
    "finished": True,
}


TABLE = [
    {
        "run": "a",
        "algorithm": "ppo",
        "unit": "environment steps",
        "env": "X",
        "config": {"clip": 0.1},
        "seeds": 8,
        "mean": 487.25,
    }
    | {"iqm": 500.0, "ci95": [470.5, 500.0], "headline": "return", "steps": 507_904}
    | {"steps_per_second": 5.0, "note": ""},
    {
        "run": "b",
        "algorithm": "dpo",
        "unit": "judgements",
        "env": "pairs",
        "config": {},
        "seeds": 1,
        "mean": 0.75,
    }
    | {"iqm": 0.75, "ci95": None, "headline": "accuracy", "steps": 2_000}
    | {"steps_per_second": 5.0, "note": "b has no summary.json: it is running or was stopped"},
]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """(name, arguments, keywords) of every call of the library, which does nothing; in an empty directory."""
    made = []

    def stand_in(name, result):
        def call(*arguments, **keywords):
            made.append((name, arguments, keywords))
            return result(*arguments, **keywords)

        monkeypatch.setattr(rljax, name, call, raising=False)

    def members(grid):
        cells = itertools.product(*grid.values(), range(2))
        rows = [dict(zip([*grid, "seed"], cell, strict=True)) for cell in cells]
        return [row | {"return": value} for row, value in zip(rows, itertools.cycle([10.0, 20, 90, 80]))]

    stand_in("train", lambda *a, **k: Result(SUMMARY, k["out"], None, None, []))
    stand_in("sweep", lambda *a, **k: SweepResult(members(a[2]), k["out"], [], 1))
    stand_in("evaluate", lambda *a, **k: {"return": RETURN, "iteration": 62, "greedy": True})
    monkeypatch.setattr(report, "table", lambda runs: TABLE)
    stand_in("report", lambda *a, **k: [Path("a.png"), Path("b.png")])
    stand_in("render", lambda *a, **k: Path("film.gif"))
    monkeypatch.chdir(tmp_path)
    return made


def run(line):
    return cli.main(line.split())


# what is handed over


def test_train_without_config_options_leaves_the_config_to_the_library(calls):
    assert run("train ppo --env CartPole-v1") == 0
    ((name, arguments, keywords),) = calls
    assert (name, arguments) == ("train", ("ppo", "CartPole-v1", {}))
    assert keywords == {
        "steps": None,
        "seeds": 1,
        "seed": 0,
        "out": Path("runs/ppo-CartPole-v1"),
        "env_arguments": {},
        "checkpoint_every": 0,
        "keep": 3,
        "resume": False,
        "init": None,
        "init_member": None,
        "changed_algorithm": False,
        "target_return": None,
        "evaluate_every": 0,
        "evaluation_episodes": 128,
        "log_every": 0,
        "tensorboard": False,
        "wandb": False,
        "progress": True,
    }


def test_train_hands_over_every_option(calls):
    assert (
        run(
            "train ppo --env Acrobot-v1 --steps 5e5 --seeds 8 --seed 1_000 --out some/where"
            " --checkpoint-every 10 --keep 2 --resume --init other --init-member 3"
            " --target-return -80 --evaluate-every 5 --evaluation-episodes 64"
            " --log-every 7 --tensorboard --wandb --no-progress"
        )
        == 0
    )
    keywords = calls[0][2]
    assert keywords == {
        "steps": 500_000,
        "seeds": 8,
        "seed": 1000,
        "out": Path("some/where"),
        "env_arguments": {},
        "checkpoint_every": 10,
        "keep": 2,
        "resume": True,
        "init": Path("other"),
        "init_member": 3,
        "changed_algorithm": False,
        "target_return": -80.0,
        "evaluate_every": 5,
        "evaluation_episodes": 64,
        "log_every": 7,
        "tensorboard": True,
        "wandb": True,
        "progress": False,
    }


def test_a_config_option_changes_that_field_of_the_preset(calls, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, ("ppo", "CartPole-v1"), {"num_envs": 7, "clip": 0.3})
    line = "train ppo --env CartPole-v1 --config.learning-rate 1e-3 --config.num_envs 16"
    line += " --config.hidden-sizes 32x16 --config.initial-log-std -0.5 --config.value-loss plain"
    assert run(line) == 0
    found = load.setup(algorithms.find("ppo"), "CartPole-v1", calls[0][1][2], None, {})
    assert found.preset
    assert found.config == ppo.Config(
        clip=0.3,
        learning_rate=1e-3,
        num_envs=16,
        hidden_sizes=(32, 16),
        initial_log_std=-0.5,
        value_loss="plain",
    )


@pytest.mark.parametrize("algorithm", algorithms.NAMES)
def test_every_field_can_be_given_its_own_default(calls, algorithm):
    fields = algorithms.find(algorithm).fields()
    words = [
        "train",
        algorithm,
        *(["--task", "reverse"] if algorithms.find(algorithm).text else ["--env", "X"]),
    ]
    for field in fields:
        words += [f"--config.{field.name.replace('_', '-')}", options.typed(field.default)]
    assert cli.main(words) == 0
    assert (
        algorithms.find(algorithm).module.Config(**calls[0][1][2])
        == algorithms.find(algorithm).module.Config()
    )


def test_environment_arguments_are_python_literals_or_strings(calls):
    line = "train ppo --env X --env-argument length=0.7 --env-argument rows=-8 --env-argument kind=a=b"
    assert run(line + " --env-argument size=(1,2) --env-argument use-it=True") == 0
    expected = {"length": 0.7, "rows": -8, "kind": "a=b", "size": (1, 2), "use_it": True}
    assert calls[0][2]["env_arguments"] == expected


def test_a_number_may_be_none(calls):
    assert run("train sft --data a.jsonl --config.dropout 0.1") == 0
    assert run("train sft --data a.jsonl --config.dropout none") == 0
    assert [call[1][2] for call in calls] == [{"dropout": 0.1}, {}]
    assert run("train sft --data a.jsonl --config.dropout nine") == 2


def test_text_algorithms_take_a_corpus(calls):
    line = "train sft --data a.jsonl --data b.jsonl --held-out c.jsonl --model some/model --long drop"
    assert run(f"{line} --held-out-fraction 0.2 --config.train lora --config.patterns a/*+b") == 0
    ((_, (algorithm, corpus, given), keywords),) = calls
    assert algorithm == "sft"
    assert corpus == text.Corpus(
        ("a.jsonl", "b.jsonl"), "c.jsonl", model="some/model", long="drop", held_out_fraction=0.2
    )
    assert given == {"train": "lora", "patterns": ("a/*", "b")}
    assert keywords["out"] == Path("runs/sft-a+1")
    line = "train pretrain --data a.jsonl --held-out b.jsonl --stream --order 3 --window 10 --block 2"
    assert run(line) == 0
    assert calls[1][1][1] == text.Corpus("a.jsonl", "b.jsonl", stream=True, order=3, window=10, block=2)


def test_a_default_folder_is_a_new_one(calls, tmp_path):
    for number in ("", "-2", "-3"):
        assert run("train ppo --env X") == 0
        (tmp_path / f"runs/ppo-X{number}").mkdir(parents=True)
    assert [str(keywords["out"]) for _, _, keywords in calls] == [
        "runs/ppo-X",
        "runs/ppo-X-2",
        "runs/ppo-X-3",
    ]


def test_options_may_come_before_the_algorithm(calls):
    assert run("train --env X --config.clip 0.1 ppo") == 0
    assert calls[0][1][2] == {"clip": 0.1}


def test_sweep_takes_lists_for_fields_of_every_type(calls):
    line = "sweep ppo --env X --seeds 16 --out o --config.learning-rate 1e-4,1e-3"
    line += " --config.hidden-sizes 64x64,256 --config.initial-log-std -1,0 --config.num-envs 8,16"
    assert run(line + " --config.value-loss plain,clipped --config.clip 0.1") == 0
    name, (algorithm, env, grid, config), keywords = calls[0]
    assert (name, algorithm, env, keywords["seeds"]) == ("sweep", "ppo", "X", 16)
    assert grid == {
        "learning_rate": [1e-4, 1e-3],
        "num_envs": [8, 16],
        "hidden_sizes": [(64, 64), (256,)],
        "initial_log_std": [-1.0, 0.0],
        "value_loss": ["plain", "clipped"],
    }
    assert config == {"clip": 0.1}
    assert not {"resume", "init", "init_member"} & set(keywords)


def test_evaluate_report_and_render_hand_over_their_options(calls):
    assert run("evaluate r --episodes 10 --sampled --seed 3 --member 2 --checkpoint 40") == 0
    assert run("report a b --out o") == 0
    assert run("render r --out f.gif --member 2 --seed 1") == 0
    own = {"algorithm": None, "changed_algorithm": False}
    assert [each[1:] for each in calls] == [
        (
            (Path("r"),),
            {"episodes": 10, "greedy": False, "seed": 3, "member": 2, "checkpoint_iteration": 40} | own,
        ),
        (([Path("a"), Path("b")],), {"out": Path("o")}),
        ((Path("r"),), {"out": Path("f.gif"), "member": 2, "seed": 1} | own),
    ]


# what is printed


def test_train_prints_the_result_and_what_to_do_next(calls, capsys):
    assert run("train ppo --env CartPole-v1 --out some/where") == 0
    printed = capsys.readouterr().out
    assert "ppo on CartPole-v1: 507,904 environment steps per seed" in printed
    assert "487.25  IQM 500  95% CI 470.5 to 500  (8 seeds × 128 greedy episodes)" in printed
    assert "1,234,567 environment steps/s on a machine" in printed
    assert "start-up  5.0 s: import 1.0, trace 0.7, compile 2.5; 1 of 2 programs from the cache" in printed
    assert "rljax report some/where" in printed


def test_a_single_seed_has_no_interval():
    block = {"mean": None, "iqm": None, "ci95": None, "per_seed": [None], "episodes": 128}
    assert printing.statistics(block) == "–  (1 seed × 128 episodes)"


def test_sweep_prints_the_best_first_and_how_to_train_it(calls, capsys):
    assert (
        run("sweep ppo --env X --seeds 2 --steps 1e6 --config.learning-rate 1e-4,1e-3 --config.clip 0.1") == 0
    )
    printed = capsys.readouterr().out
    assert printed.index("0.001") < printed.index("0.0001")
    assert "85" in printed
    command = (
        "train ppo --env X --steps 1000000 --config.clip 0.1 --config.learning-rate 0.001 --seeds 8 --seed 2"
    )
    assert f"rljax {command}" in printed
    assert run(command) == 0  # it parses
    assert calls[-1][1][2] == {"clip": 0.1, "learning_rate": 0.001}


def test_sweep_over_text_prints_the_lowest_loss_first(calls, capsys, monkeypatch):
    rows = [{"learning_rate": 0.1, "seed": 0, "loss": 2.0}, {"learning_rate": 0.2, "seed": 0, "loss": 1.0}]
    monkeypatch.setattr(rljax, "sweep", lambda *a, **k: SweepResult(rows, k["out"], [], 1), raising=False)
    assert run("sweep sft --data a.jsonl --data b.jsonl --loss all --config.learning-rate 0.1,0.2") == 0
    printed = capsys.readouterr().out
    assert "loss" in printed
    assert printed.index("0.2 ") < printed.index("0.1 ")
    assert "rljax train sft --data a.jsonl --data b.jsonl --loss all --config.learning-rate 0.2" in printed


def test_train_on_text_counts_rows_and_goes_on_to_generate(calls, capsys, monkeypatch):
    told = {key: value for key, value in SUMMARY.items() if key not in ("env", "return")}
    told |= {
        "algorithm": "sft",
        "unit": "tokens",
        "task": "a",
        "headline": "loss",
        "loss": RETURN | {"episodes": 7},
    }
    result = Result(told, Path("r"), None, None, [])
    monkeypatch.setattr(rljax, "train", lambda *a, **k: result, raising=False)
    assert run("train sft --data a.jsonl") == 0
    printed = capsys.readouterr().out
    assert "sft on a: 507,904 tokens per seed" in printed
    assert "(8 seeds × 7 held-out rows)" in printed
    assert "rljax generate r" in printed


def test_a_configuration_that_failed_for_a_seed_comes_last():
    members = [{"clip": 0.1, "return": 5.0}, {"clip": 0.1, "return": None}, {"clip": 0.2, "return": -9.0}]
    assert printing.rank(members, ["clip"]) == [({"clip": 0.2}, -9.0, 1), ({"clip": 0.1}, None, 2)]


def test_report_prints_a_table_and_where_the_figures_are(calls, capsys):
    assert run("report a b") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = "a ppo X clip=0.1 return 487.25 500 470.5 to 500 8 507,904 environment steps"
    assert first.split() in lines
    assert ["b", "dpo", "pairs", "accuracy", "0.75", "0.75", "–", "1", "2,000", "judgements"] in lines
    assert ["note", "b", "has", "no", "summary.json:", "it", "is", "running", "or", "was", "stopped"] in lines
    assert lines[-2:] == [["figure", "a.png"], ["figure", "b.png"]]


def test_render_prints_only_the_path(calls, capsys):
    assert run("render a") == 0
    assert capsys.readouterr().out == "film.gif\n"


def test_lists(capsys):
    assert run("list") == 0
    printed = capsys.readouterr().out
    for part in ("reinforce", "Proximal policy optimisation", "CartPole-v1", "learning_rate="):
        assert part in printed
    assert run("list fields ppo") == 0
    printed = capsys.readouterr().out
    for field in algorithms.find("ppo").fields():
        assert field.name in printed
    assert "minibatch" in printed
    assert run("list environments FrozenLake-misc") == 0
    assert "16" in capsys.readouterr().out


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_descriptions_in_the_list_are_whole_sentences(name):
    said = listing.first_sentence(algorithms.find(name).module)
    assert said.count("(") == said.count(")")
    paragraph = " ".join((algorithms.find(name).module.__doc__ or "").split())
    assert paragraph.removeprefix(said).startswith((". ", " "))  # the sentence, or the line before equations
    assert "\n" not in said


def test_environments_are_listed_with_their_kinds(capsys):
    assert run("list environments") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("CartPole-v1 vector 4 discrete 2 ppo", "Breakout-MinAtar image 10x10x4 discrete 3 ppo, pqn"):
        assert any(each.startswith(line) for each in lines)
    assert "Pendulum-v1 vector 3 continuous 1 ppo, ddpg, td3, sac" in lines
    assert any(line.startswith("FrozenLake-tabular discrete 16 discrete 4 q_learning") for line in lines)


@pytest.mark.parametrize("algorithm", algorithms.NAMES)
def test_help_says_more_than_a_symbol(algorithm):
    """Two words at least, of the field's own kind, and nothing that points elsewhere."""
    for field in algorithms.find(algorithm).fields():
        words = re.findall(r"[a-zA-Z]{2,}", field.help)
        assert len(words) > 1, (field.name, field.help)
        assert "see above" not in field.help
        if field.name == "architecture":
            assert ("cnn" in field.help) != algorithms.find(algorithm).text


@pytest.mark.parametrize("algorithm", algorithms.NAMES)
def test_every_field_has_help(algorithm, capsys):
    assert not [field.name for field in algorithms.find(algorithm).fields() if not field.help]
    assert run(f"train {algorithm} --help") == 0
    printed = capsys.readouterr().out
    for field in algorithms.find(algorithm).fields():
        assert f"--config.{field.name.replace('_', '-')} " in printed
        assert field.help.split()[0] in printed


def test_help_shows_defaults_and_the_preset_of_the_environment(capsys, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, ("ppo", "CartPole-v1"), {"num_envs": 7})
    monkeypatch.setenv("COLUMNS", "200")
    assert run("train ppo --help") == 0
    plain = capsys.readouterr().out
    assert "environments running in parallel (default: 64)" in plain
    assert run("train ppo --env CartPole-v1 --help") == 0
    assert "(preset for CartPole-v1: 7; default: 64)" in capsys.readouterr().out


def test_help_of_a_text_algorithm_has_the_corpus_in_place_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("train sft --help") == 0
    printed = capsys.readouterr().out
    for field in fields_of(text.Corpus):
        assert f"--{field.name.replace('_', '-')} " in printed
        assert field.help.split()[0] in printed
    assert "--env" not in printed


def test_every_option_of_train_has_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("train --help") == 0
    lines = capsys.readouterr().out.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("│ --"):
            text = (line.strip("│ ").partition("  ")[2] + lines[i + 1].strip("│ ")).strip()
            assert text, line
            assert not text.startswith(("(", "--")), line


# how it fails


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian ppo", "did you mean train?"),
        ("train poo --env X", "did you mean ppo?"),
        ("sweep poo --env X", "did you mean ppo?"),
        ("list fields poo", "did you mean ppo?"),
        ("list presets poo", "did you mean ppo?"),
        ("list fields", "rljax list fields reinforce|a2c|ppo"),
        ("list environments CartPol-v1", "did you mean CartPole-v1?"),
        ("train ppo", "--env NAME"),
        ("train sft", "Add --data FILE"),
        ("train sft --data a.txt --held-out-fraction 0", "held_out_fraction = 0: must be above 0"),
        (
            "train sft --data a.txt --env X",
            "sft learns text: add --data FILE or --task NAME in place of --env",
        ),
        ("sweep pretrain --env=X", "pretrain learns text"),
        ("train ppo --data a.txt", "ppo learns in an environment: add --env NAME in place of --data"),
        ("train ppo --env X --env-argument length", "KEY=VALUE"),
        ("train ppo --env X --resume", "--out"),
        ("sweep ppo --env X", "nothing to sweep"),
        ("report", "run folder"),
    ],
)
def test_misuse_is_one_line_and_status_2(calls, capsys, line, message):
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert err.startswith("rljax: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert (out, calls) == ("", [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train ppo --env X --config.learnin-rate 1", "did you mean learning_rate?"),
        ("train ppo --env X --config.gamma 0.9", "ppo.Config has no field gamma; here it is discount"),
        ("train ppo --env X --learning-rate 1", "--config.learning-rate"),
        ("train ppo --envv X", "--env "),
        ("train ppo --env X --config.value-loss clippd", "did you mean clipped?"),
        ("sweep ppo --env X --config.value-loss plain,clippd", "did you mean clipped?"),
        ("train ppo --env X --steps abc", "'abc' is not a number"),
        ("train ppo --env X --seeds 1.5", "'1.5' is not a whole number"),
        ("train ppo --env X --seeds inf", "'inf' is not a whole number"),
        ("train ppo --env X --config.num-envs 1e-3", "'1e-3' is not a whole number"),
        ("sweep ppo --env X --config.clip 0.1,,0.2", "'' is not a number"),
        ("list feilds", "did you mean fields?"),
        ("evaluate", "RUN"),
    ],
)
def test_what_cannot_be_parsed_is_status_2_with_the_nearest(calls, capsys, line, message):
    assert run(line) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert calls == []


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("ppo.Config.clip = -1: must be above 0"), 2, "ppo.Config.clip = -1: must be above 0"),
        (FileNotFoundError("x is not a run folder"), 2, "x is not a run folder"),
        (FileNotFoundError(2, "No such file or directory", "r/x"), 2, "r/x: No such file or directory"),
        (ValueError("one\ntwo"), 2, "one … (RLJAX_TRACEBACK=1 shows the rest)"),
        (RunError("episode_return became NaN"), 1, "episode_return became NaN"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_an_error_of_the_library_is_one_line(monkeypatch, capsys, error, status, text):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(rljax, "evaluate", fail, raising=False)
    monkeypatch.delenv("RLJAX_TRACEBACK", raising=False)
    assert run("evaluate somewhere") == status
    assert capsys.readouterr().err == f"rljax: error: {text}\n"
    monkeypatch.setenv("RLJAX_TRACEBACK", "1")
    assert run("evaluate somewhere") == status
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith(f"rljax: error: {text}\n")


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise KeyboardInterrupt("stopped at iteration 3; continue with --resume")

    monkeypatch.setattr(rljax, "evaluate", fail, raising=False)
    assert run("evaluate somewhere") == 130
    assert capsys.readouterr().err == "rljax: stopped at iteration 3; continue with --resume\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("XLA")

    monkeypatch.setattr(rljax, "evaluate", fail, raising=False)
    with pytest.raises(RuntimeError, match="XLA"):
        run("evaluate somewhere")


# as a process


def command(*words, **environment):
    env = os.environ | {"COLUMNS": "100"} | environment
    return subprocess.run(
        [sys.executable, "-m", "rljax", *words], capture_output=True, text=True, env=env, check=False
    )


def test_the_version():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"rljax {rljax.__version__}\n")


def test_help_of_the_command_imports_no_jax():
    code = (
        "import sys; from rljax.cli import main; main(['--help'])\n"
        "print([m for m in ('jax', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for name in ("train", "sweep", "evaluate", "report", "render", "list"):
        assert name in done.stdout


def test_help_of_an_algorithm_imports_neither_gymnax_nor_orbax():
    code = (
        "import sys; from rljax.cli import main; main(['train', 'ppo', '--help'])\n"
        "print([m for m in ('gymnax', 'orbax', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "--config.learning-rate" in done.stdout


def test_misuse_ends_the_process_with_2():
    done = command("train", "ppo", "--env", "Cartpole-v1", "--no-progress")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "rljax: error: no environment 'Cartpole-v1'; did you mean CartPole-v1?\n"


def test_a_closed_pipe_is_no_traceback():
    shell = f"{sys.executable} -m rljax list fields ppo | true; {sys.executable} -m rljax --help | true"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


# the list of algorithms, presets


def test_an_algorithm_is_found_by_name():
    assert algorithms.find("ppo").module is ppo
    with pytest.raises(ValueError, match=r"no algorithm 'a3c' .*did you mean a2c\?"):
        algorithms.find("a3c")


def test_fields_know_their_type_default_and_whether_they_are_leaves():
    fields = {field.name: field for field in algorithms.find("ppo").fields()}
    assert fields["clip"].type is float
    assert fields["clip"].default == 0.2
    assert fields["clip"].leaf
    assert fields["num_envs"].type is int
    assert not fields["num_envs"].leaf


def test_help_of_a_field_comes_from_any_of_its_lines(tmp_path, monkeypatch):
    source = (
        "class Config:\n    '''x: not # a comment'''\n    a: int = 1  # first\n"
        "    b: tuple = (\n        1,\n    )  # second\n    c: str = '# no'\n"
    )
    (tmp_path / "some_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import some_module  # pyright: ignore[reportMissingImports]

    assert comments_of(some_module.Config) == {"a": "first", "b": "second", "c": ""}


@pytest.mark.parametrize(("algorithm", "env"), list(presets.PRESETS))
def test_presets_make_a_config_and_an_algorithm(algorithm, env):
    from rljax import envs
    from rljax.runs import starting_model

    config, used = presets.config_for(algorithms.find(algorithm), env, {})
    assert used
    if algorithms.find(algorithm).text:
        world, config = starting_model.world(text.tasks.make(env), algorithms.find(algorithm), config)
    else:
        world = envs.make(env)
    algorithms.find(algorithm).module.make(world, config)


def test_overrides_win_over_the_preset_and_that_over_the_defaults(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, ("ppo", "X"), {"clip": 0.3, "num_envs": 7})
    assert presets.config_for(algorithms.find("ppo"), "X", {"clip": 0.4}) == (
        ppo.Config(clip=0.4, num_envs=7),
        True,
    )
    assert presets.config_for(algorithms.find("ppo"), "Y", {}) == (ppo.Config(), False)
    with pytest.raises(
        ValueError, match=r"ppo\.Config has no field learnin_rate; did you mean learning_rate\?"
    ):
        presets.config_for(algorithms.find("ppo"), "X", {"learnin_rate": 1})


def test_a_preset_is_a_copy():
    found = presets.preset("ppo", "CartPole-v1")
    assert found is not None
    found["clip"] = 99
    assert presets.PRESETS["ppo", "CartPole-v1"].get("clip") != 99
    assert presets.preset("ppo", "Nowhere-v0") is None


def test_tab_completion_knows_algorithms_and_environments(capsys):
    assert run("--tyro-print-completion bash") == 0
    printed = capsys.readouterr().out
    for name in ("rlhf_ppo", "CartPole-v1", "FrozenLake-tabular", "--config.learning-rate"):
        assert name in printed
