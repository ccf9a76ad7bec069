import itertools
import json

import matplotlib as mpl
import numpy as np
import pytest

import rljax
from rljax import algorithms
from rljax.runs import report
from rljax.runs.report import draw_curve, read_run, table
from rljax.runs.reports import plots
from rljax.runs.reports.statistics import headline, iqm

CONFIG = {"total_steps": 1000.0, "learning_rate": 3e-4, "num_envs": 4, "hidden_sizes": [64, 64]}


def write_run(
    path, returns, evaluations=None, algorithm="ppo", env="CartPole-v1", swept=None, summary=True, **config
):
    """A run folder; `returns` is (T, S) with None where no episode ended."""
    path.mkdir(parents=True)
    seeds = len(returns[0])
    values = CONFIG | config | (swept or {})
    about = {
        "algorithm": algorithm,
        "unit": algorithms.find(algorithm).unit,
        "env": env,
        "env_arguments": {},
        "config": values,
    }
    about |= {"swept": list(swept or {}), "seeds": list(range(seeds))}
    (path / "config.json").write_text(json.dumps(about))
    lines = []
    for t, row in enumerate(returns):
        line = {"iteration": t + 1, "steps": 100 * (t + 1), "seconds": 0.5 * t, "steps_per_second": 200.0}
        line["episode_return"] = list(row)
        if evaluations and evaluations[t] is not None:
            line["evaluation_return"] = list(evaluations[t])
        lines.append(json.dumps(line))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if summary:
        block = headline([7.0 + seed for seed in range(seeds)], 128)
        content = {"algorithm": algorithm, "env": env, "steps": 100 * len(returns), "seeds": seeds}
        content |= {"headline": "return", "return": block, "steps_per_second": 250.0, "finished": True}
        (path / "summary.json").write_text(json.dumps(content))
    return path


def write_sweep(path, grid, score, seeds=3):
    path.mkdir(parents=True)
    members = []
    for values in itertools.product(*grid.values()):
        own = dict(zip(grid, values, strict=True))
        for seed in range(seeds):
            where = {"part": "part-000", "member": len(members), "seed": seed}
            members.append(where | own | {"return": score(own, seed)})
    content = {
        "algorithm": "ppo",
        "unit": "environment steps",
        "env": "CartPole-v1",
        "grid": grid,
        "seeds": seeds,
        "members": members,
    }
    (path / "sweep.json").write_text(json.dumps(content | {"steps_per_second": 5.0}))
    return path


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to each drawing function, in order."""
    seen = []

    def spy(name):
        real = getattr(plots, name)

        def call(*arguments):
            seen.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(plots, name, call)

    for name in ("curves", "response", "heat_map"):
        spy(name)
    return seen


def test_read_run(tmp_path):
    run = read_run(write_run(tmp_path / "a", [[None, None], [1.0, None], [2.0, 3.0]]))
    np.testing.assert_array_equal(run.rows["steps"], [100, 200, 300])
    np.testing.assert_array_equal(run.rows["episode_return"], [[np.nan] * 2, [1, np.nan], [2, 3]])
    assert run.summary is not None
    assert run.summary["steps"] == 300
    assert run.notes == ()
    assert run.config["algorithm"] == "ppo"


def test_a_metric_of_some_rows_is_nan_in_the_others(tmp_path):
    run = read_run(write_run(tmp_path / "a", [[1.0, 2.0]] * 3, [None, [5.0, None], None]))
    np.testing.assert_array_equal(
        run.rows["evaluation_return"], [[np.nan, np.nan], [5, np.nan], [np.nan, np.nan]]
    )


def test_a_last_line_cut_off_is_dropped_and_said(tmp_path):
    path = write_run(tmp_path / "a", [[1.0], [2.0], [3.0]])
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[:-20])
    run = read_run(path)
    np.testing.assert_array_equal(run.rows["steps"], [100, 200])
    assert len(run.notes) == 1
    assert "last line" in run.notes[0]
    assert "last line" in table([path])[0]["note"]
    assert is_png(draw_curve(path))


def test_rows_written_again_by_a_resumed_run_replace_the_old(tmp_path):
    path = write_run(tmp_path / "a", [[1.0], [2.0], [3.0], [4.0]])
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"iteration": 3, "steps": 300, "episode_return": [9.0]}) + "\n")
    run = read_run(path)
    np.testing.assert_array_equal(run.rows["iteration"], [1, 2, 3])
    np.testing.assert_array_equal(run.rows["episode_return"][:, 0], [1, 2, 9])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: (run / "config.json").unlink(), FileNotFoundError, r"config\.json"),
        (lambda run: (run / "config.json").write_text('{"algorithm": "p'), ValueError, r"config\.json"),
        (lambda run: (run / "metrics.jsonl").unlink(), FileNotFoundError, r"metrics\.jsonl is missing"),
        (lambda run: (run / "summary.json").write_text('{"steps": 3'), ValueError, r"summary\.json"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"iteration": 1}\nhello\n{"iteration": 2}\n'),
            ValueError,
            r"metrics\.jsonl line 2",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"iteration": 1, "episode_return": [1, 2]}\n'),
            ValueError,
            "episode_return has not one number for each of 1 seeds",
        ),
    ],
    ids=["no config", "half config", "no metrics", "half summary", "damaged line", "other seeds"],
)
def test_damage_is_one_line(damage, error, message, tmp_path):
    path = write_run(tmp_path / "a", [[1.0], [2.0]])
    damage(path)
    for function in (read_run, draw_curve, table):
        with pytest.raises(error, match=message) as caught:
            function([path] if function is table else path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no runs"):
        report.report([])


def test_curves_are_carried_forward_and_start_when_all_seeds_have_a_number(tmp_path, drawn):
    returns = [[None, 1.0, None], [5.0, None, None], [None, 2.0, None], [6.0, None, None]]
    draw_curve(write_run(tmp_path / "a", returns))
    ((line,),) = (panel.lines for panel in drawn[0][0])
    assert line.label == "ppo (2 of 3 seeds)"  # the third never ended an episode
    np.testing.assert_array_equal(line.steps, [200, 300, 400])
    np.testing.assert_array_equal(line.values, [[5, 5, 6], [1, 2, 2]])


def test_evaluations_are_preferred_where_every_run_has_them(tmp_path, drawn):
    evaluations = [None, [10.0, 20.0], None, [30.0, 40.0]]
    one = write_run(tmp_path / "one", [[1.0, 2.0]] * 4, evaluations)
    two = write_run(tmp_path / "two", [[3.0, 4.0]] * 4, algorithm="a2c")
    report.report([one], out=tmp_path)
    report.report([one, two], out=tmp_path)
    (alone,), (together,) = (arguments[0] for arguments in drawn)
    assert "greedy" in alone.quantity
    np.testing.assert_array_equal(alone.lines[0].steps, [200, 400])
    np.testing.assert_array_equal(alone.lines[0].values, [[10, 30], [20, 40]])
    assert "training" in together.quantity
    assert [line.values[0, 0] for line in together.lines] == [1, 3]


def test_one_subplot_per_environment_and_labels_tell_lines_apart(tmp_path, drawn):
    rows = [[1.0, 2.0, 4.0]] * 3
    runs = [
        write_run(tmp_path / "a", rows),
        write_run(tmp_path / "b", rows, num_envs=8),
        write_run(tmp_path / "c", rows, algorithm="a2c"),
        write_run(tmp_path / "d", rows, env="Catch-bsuite"),
        write_run(tmp_path / "e", rows, env="Catch-bsuite"),
    ]
    (path,) = report.report(runs, out=tmp_path / "figures")
    assert path == tmp_path / "figures" / "curves.png"
    assert is_png(path)
    cart, catch = drawn[0][0]
    assert cart.title == "CartPole-v1"
    assert [line.label for line in cart.lines] == [
        "ppo, num_envs 4 (3 seeds)",
        "ppo, num_envs 8 (3 seeds)",
        "a2c (3 seeds)",
    ]
    assert [line.label for line in catch.lines] == ["ppo, d (3 seeds)", "ppo, e (3 seeds)"]


def test_a_part_of_a_sweep_is_a_curve_per_configuration(tmp_path, drawn):
    swept = {"learning_rate": [1e-4, 1e-4, 3e-4, 3e-4]}
    run = write_run(tmp_path / "a", [[1.0, 2.0, 3.0, 4.0]] * 2, swept=swept)
    draw_curve(run)
    lines = drawn[0][0][0].lines
    assert [line.label for line in lines] == [
        "ppo, learning_rate 1e-4 (2 seeds)",
        "ppo, learning_rate 3e-4 (2 seeds)",
    ]
    np.testing.assert_array_equal(lines[1].values, [[3, 3], [4, 4]])
    assert [row["mean"] for row in table([run])] == [7.5, 9.5]


@pytest.mark.parametrize("seeds", [1, 2, 4])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_run_can_be_drawn(seeds, rows, tmp_path):
    """Training must not fail at its end because there is little to draw."""
    run = write_run(tmp_path / "a", [[1.0] * seeds] * max(1, rows))
    if not rows:
        (run / "metrics.jsonl").write_text("")
    assert draw_curve(run) == run / "curve.png"
    assert is_png(run / "curve.png")


def test_a_run_without_a_finished_episode_is_drawn_empty(tmp_path, drawn):
    run = write_run(tmp_path / "a", [[None, None]] * 3, summary=False)
    assert is_png(draw_curve(run))
    (line,) = drawn[0][0][0].lines
    assert line.label == "ppo (0 of 2 seeds)"
    assert line.values.size == 0
    assert table([run])[0]["mean"] is None


def test_many_lines_and_rows_are_drawn(tmp_path):
    members = 36
    swept = {"learning_rate": np.geomspace(1e-5, 1e-2, 12).repeat(3).tolist()}
    rng = np.random.default_rng(0)
    assert is_png(
        draw_curve(write_run(tmp_path / "a", rng.normal(size=(700, members)).tolist(), swept=swept))
    )


def test_figures_touch_no_global_state(tmp_path):
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams.copy())
    draw_curve(write_run(tmp_path / "a", [[1.0, 2.0, 3.0]] * 3))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams.copy()) == before


def test_sweep_of_one_field(tmp_path, drawn):
    grid = {"learning_rate": [1e-2, 1e-4, 1e-3]}
    sweep = write_sweep(tmp_path / "s", grid, lambda own, seed: own["learning_rate"] * 1e4 + seed)
    assert report.report(sweep) == [sweep / "sweep.png"]
    field, values, cells, *_ = drawn[0]
    assert field == "learning_rate"
    assert values == grid["learning_rate"]
    np.testing.assert_allclose(cells, [[100, 101, 102], [1, 2, 3], [10, 11, 12]])


def test_sweep_of_two_fields_and_diverged_members(tmp_path, drawn):
    grid = {"clip": [0.1, 0.2], "learning_rate": [1e-4, 3e-4, 1e-3]}
    lost = {"clip": 0.2, "learning_rate": 3e-4}
    score = lambda own, seed: None if own == lost and seed else own["clip"] * 10 + own["learning_rate"] + seed
    (path,) = report.report([write_sweep(tmp_path / "s", grid, score)], out=tmp_path / "figures")
    assert path == tmp_path / "figures" / "sweep.png"
    assert is_png(path)
    fields, values, cells, title, _, _, limits = drawn[0]
    assert fields == ("clip", "learning_rate")
    assert values == (grid["clip"], grid["learning_rate"])
    assert np.shape(cells) == (2, 3, 3)
    np.testing.assert_allclose(cells[1][0], [2.0001, 3.0001, 4.0001])
    np.testing.assert_array_equal(np.isnan(cells[1][1]), [False, True, True])
    assert plots.centre(cells[1][1]) == pytest.approx(2.0003)
    assert limits == (pytest.approx(plots.centre(cells[0][0])), pytest.approx(3.001))
    assert "3 seeds each" in title


def test_sweep_of_three_fields_is_a_map_per_value_of_the_shortest(tmp_path, drawn):
    grid = {"activation": ["tanh", "relu"], "clip": [0.1, 0.2, 0.3], "discount": [0.9, 0.95, 0.99]}
    score = lambda own, seed: own["clip"] + 10 * (own["activation"] == "relu")
    sweep = write_sweep(tmp_path / "s", grid, score)
    names = [path.name for path in report.report(sweep)]
    assert names == ["sweep-activation=tanh.png", "sweep-activation=relu.png"]
    assert [arguments[0] for arguments in drawn] == [("clip", "discount")] * 2
    assert drawn[0][-1] == drawn[1][-1] == (pytest.approx(0.1), pytest.approx(10.3))  # one scale of colours
    assert drawn[1][2][2][0][0] == pytest.approx(10.3)


def test_static_fields_of_a_sweep(tmp_path, drawn):
    grid = {"hidden_sizes": [[64, 64], [256]], "loss": ["plain"], "num_envs": [4, 8]}
    sweep = write_sweep(tmp_path / "s", grid, lambda own, seed: len(own["hidden_sizes"]) + own["num_envs"])
    report.report(sweep)
    np.testing.assert_array_equal(np.array(drawn[0][2])[:, :, 0], [[6, 10], [5, 9]])
    assert drawn[0][0] == ("hidden_sizes", "num_envs")  # a field of one value is no axis


def test_sweep_misuse_is_one_line(tmp_path):
    same = write_sweep(tmp_path / "same", {"clip": [0.1]}, lambda own, seed: 1.0)
    with pytest.raises(ValueError, match="varies no field"):
        report.report(same)
    (same / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'algorithm'"):
        report.report(same)
    (same / "sweep.json").write_text('{"alg')
    with pytest.raises(ValueError, match=r"sweep\.json is not readable JSON"):
        table(same)


def test_sweeps_and_runs_together(tmp_path):
    grid = {"clip": [0.1, 0.2]}
    sweeps = [write_sweep(tmp_path / name, grid, lambda own, seed: own["clip"]) for name in ("s", "t")]
    run = write_run(tmp_path / "a", [[1.0]] * 3)
    names = [path.name for path in report.report([*sweeps, run], out=tmp_path / "figures")]
    assert names == ["curve.png", "s-sweep.png", "t-sweep.png"]


def test_table(tmp_path):
    run = write_run(tmp_path / "a", [[1.0, 2.0, 3.0, 4.0]] * 5)
    sweep = write_sweep(tmp_path / "s", {"clip": [0.1, 0.2]}, lambda own, seed: own["clip"] * 10 + seed)
    first, second, third = table([run, sweep])
    assert first == {
        "run": str(run),
        "algorithm": "ppo",
        "env": "CartPole-v1",
        "unit": "environment steps",
        "config": {},
        "seeds": 4,
        "mean": 8.5,
        "iqm": iqm([7.0, 8.0, 9.0, 10.0]),
        "ci95": headline([7.0, 8.0, 9.0, 10.0], 1)["ci95"],
        "headline": "return",
        "steps": 500,
        "steps_per_second": 250.0,
        "note": "",
    }
    assert list(second) == list(first)
    assert [second["config"], third["config"]] == [{"clip": 0.1}, {"clip": 0.2}]
    assert [second["mean"], third["mean"]] == [2, 3]
    (part,) = table(write_run(tmp_path / "b", [[1.0, 5.0], [None, 7.0]], summary=False))
    assert part["mean"] == 4
    assert "no summary.json" in part["note"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3e-4, "3e-4"),
        (2.5e-4, "2.5e-4"),
        (0.01, "0.01"),
        (0.99, "0.99"),
        (64, "64"),
        (500_000.0, "5e5"),
        (0.0, "0"),
        ("tanh", "tanh"),
        (True, "True"),
        ([64, 64], "64x64"),
        ([], "none"),
    ],
)
def test_values_are_written_as_one_would_type_them(value, expected):
    assert plots.text(value) == expected


def test_amounts_have_the_digits_that_tell_them_apart():
    assert plots.amount(432.18, 300.0) == "432"
    assert plots.amount(9.8765, 5.0) == "9.9"
    assert plots.amount(0.12345, 0.02) == "0.123"
    assert plots.amount(5.0, 0.0) == "5.000"
    assert plots.amount(0.0, 0.0) == "0"


def test_a_figure_of_several_runs_stands_beside_them_and_overwrites_none(tmp_path, monkeypatch):
    """Under the folder that holds all of them, whatever the working folder; a second one has another name."""
    monkeypatch.setattr(plots, "curves", lambda panels, path: path.write_bytes(b"png") and path)
    runs = [write_run(tmp_path / "runs" / name, [[1.0, 2.0]] * 3) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert report.report(runs) == [tmp_path / "runs" / "curves.png"]
    assert report.report(runs) == [tmp_path / "runs" / "curves-2.png"]
    assert report.report(runs[0]) == [tmp_path / "runs" / "a" / "curve.png"]
    assert not (tmp_path / "curves.png").exists()


def test_steps_are_called_what_they_are(tmp_path, drawn):
    """The axis of a figure says tokens, judgements, completions or environment steps."""
    units = {"ppo": "environment steps", "sft": "tokens", "dpo": "judgements", "grpo": "completions"}
    for algorithm, unit in units.items():
        assert algorithms.find(algorithm).unit == unit
        run = read_run(write_run(tmp_path / algorithm, [[1.0]] * 2, algorithm=algorithm))
        assert report._panels([run])[0].steps == unit


def test_metrics_are_a_long_table(tmp_path):
    """Evaluations of every second row have entries there only; nothing stands where no episode ended."""
    run = write_run(tmp_path / "a", [[None, 2.0], [3.0, 4.0]], evaluations=[None, [5.0, 6.0]])
    assert rljax.metrics(run) == [
        (1, 100, 0.0, 1, 1, "episode_return", 2.0),
        (2, 200, 0.5, 0, 0, "episode_return", 3.0),
        (2, 200, 0.5, 1, 1, "episode_return", 4.0),
        (2, 200, 0.5, 0, 0, "evaluation_return", 5.0),
        (2, 200, 0.5, 1, 1, "evaluation_return", 6.0),
    ]
    fields = ("iteration", "steps", "seconds", "member", "seed", "metric", "value")
    assert rljax.metrics(run)[0]._fields == fields
