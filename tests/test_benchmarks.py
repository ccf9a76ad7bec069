"""The benchmarks' own code: arguments, statistics and tables. Nothing is timed or trained."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
scores, tables, throughput = map(importlib.import_module, ("control_scores", "tables", "control_throughput"))

PEERS = ["--rejax-python", "/r/python", "--purejaxrl", "/p"]


def test_arguments_say_what_is_measured():
    found = throughput.parse(["--cores", "1,0", "--shapes", "4x128,8x16", "--seeds", "1,8", *PEERS])
    assert (found.shapes, found.seeds, found.cores) == ([(4, 128), (8, 16)], [1, 8], [0, 1])
    assert found.systems == ["rljax", "purejaxrl", "rejax"]
    assert found.purejaxrl_python == Path("/r/python")
    assert throughput.parse(["--cores", "0"]).systems == ["rljax"]
    assert throughput.parse(["--gpu"]).seeds == [1, 64, 256, 2048]
    assert throughput.parse(["--cores", "0"]).seeds == [1, 8, 64, 512]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--cores 0, or --gpu"),
        (["--gpu", "--cores", "0"], "leave out --cores"),
        (["--cores", "0", "--shapes", "64"], "ENVSxSTEPS"),
        (["--cores", "0", "--seeds", "0"], "list of counts"),
        (["--cores", "0", "--systems", "rljax,sb3"], "no system 'sb3'"),
        (["--cores", "0", "--systems", "rejax-pmap"], "needs --rejax-python"),
        (["--cores", "0", "--systems", "purejaxrl", "--purejaxrl", "/p"], "--purejaxrl-python"),
        (["--cores", "0", "--rounds", "0"], "positive"),
    ],
)
def test_wrong_arguments_are_named(words, complaint, capsys):
    with pytest.raises(SystemExit):
        throughput.parse(words)
    assert complaint in capsys.readouterr().err


def test_work_of_a_step_on_cartpole():
    flops, tanh = throughput.work()
    assert (flops, tanh) == (227_200, 1280)
    # a network of one hidden unit, by hand: forward 2·(1+1+1) per net, weights as much, inputs 2·(1+1)
    assert throughput.work(1, 1, 1, epochs=1) == (2 * (6 + 6 + 6 + 4), 8)


def test_limit_is_matmul_plus_tanh():
    measured = [
        {"matmul_flops_per_second": rate, "network_flops_per_second": rate / 2, "tanh_seconds": 1e-9}
        for rate in (1.0, 227.2e9, 1e15)
    ]
    found = throughput.limit(measured, 219_298.0)
    assert found["matmul_steps_per_second"] == round(1 / (1e-6 + 1.28e-6))
    assert found["matmul_reached"] == pytest.approx(0.5, abs=1e-4)
    assert found["network_steps_per_second"] == round(1 / (2e-6 + 1.28e-6))
    assert found["network_reached"] == pytest.approx(0.7193, abs=1e-4)
    assert "matmul_reached" not in throughput.limit(measured, None)


def results():
    found = {
        "rljax": {"compile_seconds": [7.5, 7.1], "seconds": [1.0, 2.0, 4.0], "peak_bytes": 2_000_000_000},
        "purejaxrl": {"compile_seconds": [6.0], "seconds": [2.0, 3.0, 4.0], "peak_bytes": None},
        "rejax": {"error": "out of memory", "seconds": [1.0]},
    }
    described = {"rljax": {"versions": {"jax": "0.10.2"}, "threads": 3}}
    case = throughput.Case(64, 128, 8)
    assert (case.name, case.steps) == ("64x128/8", 65_536)
    whole = case._asdict() | {"systems": throughput.summarise(found, described, 65_536)}
    return {"hardware": "a core", "cases": {case.name: whole}}


def test_ratios_are_of_medians_and_of_rounds():
    systems = results()["cases"]["64x128/8"]["systems"]
    assert systems["rljax"]["steps_per_second"] == 32_768
    assert systems["rljax"]["threads"] == 3
    assert "rljax_is_faster_by" not in systems["rljax"]
    assert systems["purejaxrl"]["rljax_is_faster_by"] == {"medians": 1.5, "rounds": [2.0, 1.5, 1.0]}
    assert "steps_per_second" not in systems["rejax"]


def test_table_has_a_row_per_case_and_says_what_failed():
    content = json.loads(json.dumps(results()))
    lines = throughput.table(content).splitlines()
    assert lines[0] == "**a core**"
    assert len({line.count("|") for line in lines[2:]}) == 1
    expected = (
        "| 64 x 128 | 8 | 32.8k | 21.8k | **1.50** (1.00–2.00) | failed | – | 7.5 / 6.0 / – | 2.00 / – / – |"
    )
    assert lines[4] == expected


def test_results_survive_a_round_trip_and_reject_nan(tmp_path):
    path = tmp_path / "results" / "x.json"
    tables.write(path, results())
    assert tables.read(path) == results()
    with pytest.raises(ValueError, match="JSON"):
        tables.write(path, {"x": float("nan")})
    assert tables.read(path) == results()
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        tables.read(path)
    with pytest.raises(FileNotFoundError, match="no results file"):
        tables.read(tmp_path / "none.json")


def test_a_table_replaces_only_what_is_between_its_markers():
    text = "a\n<!-- x -->\nold\n<!-- x -->\nb\n<!-- y -->\nkept\n<!-- y -->\n"
    once = tables.between(text, "x", "new\n")
    assert once == text.replace("old", "new")
    assert tables.between(once, "x", "new") == once
    with pytest.raises(ValueError, match="needs two"):
        tables.between("<!-- x -->", "x", "new")


def test_the_readme_has_both_tables():
    text = (FOLDER / "README.md").read_text()
    assert "| marked |" in tables.between(text, "throughput", "| marked |")
    assert "| marked |" in tables.between(text, "scores", "| marked |")


def test_hardware_names_become_file_names():
    assert tables.slug("Intel(R) Xeon(R) CPU @ 2.10GHz, 1 core") == "intel-xeon-cpu-2.10ghz-1-core"


def test_only_selects_rows():
    assert [row.name for row in scores.parse(["--only", "a2c"]).rows] == ["a2c/CartPole-v1"]
    assert {row.algorithm for row in scores.parse(["--only", "CartPole-v1"]).rows} == {
        "ppo",
        "a2c",
        "reinforce",
    }
    assert len(scores.parse([]).rows) == len(scores.ROWS)
    with pytest.raises(SystemExit):
        scores.parse(["--only", "Pong"])


def test_every_score_row_names_an_algorithm_and_a_preset():
    from rljax import algorithms
    from rljax.runs import presets

    for row in scores.ROWS:
        assert row.algorithm in algorithms.NAMES
        assert row.target is None or presets.preset(row.algorithm, row.env) is not None


def test_a_target_is_met_by_the_interquartile_mean():
    assert scores.met(-79.5, -80) is True
    assert scores.met(-80.5, -80) is False
    assert scores.met(None, -80) is False
    assert scores.met(1.0, None) is None


def test_score_table():
    row = {"steps": 1_000_000, "seeds": 4, "target": -80, "met": True, "device": "a core"}
    row |= {"seconds": 61.4, "steps_per_second": 250_000.0}
    row["return"] = {"iqm": -79.06, "ci95": [-80.0, -78.0], "per_seed": [-78.0, -79.0, None, -81.0]}
    diverged = row | {"met": False, "return": {"iqm": None, "ci95": None, "per_seed": [None]}}
    rows = {"reinforce/CartPole-v1": diverged, "ppo/Acrobot-v1": row}
    lines = scores.table({"rows": rows}).splitlines()
    assert lines[2].startswith(
        "| ppo, Acrobot-v1 | 1M | 4 | −79.1 | −80.0 to −78.0 | −81.0 to −78.0 | -80 met | 61 | 250k |"
    )
    assert "| diverged | – | – | -80 missed |" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[-1] == "On a core."


@pytest.fixture
def worker():
    """Starts a worker whose script is the given text."""
    started = []

    def start(script, timeout=20.0):
        started.append(throughput.Worker([sys.executable, "-c", script], {}, timeout))
        return started[-1]

    yield start
    for each in started:
        each.close()


ECHO = """
import sys, json
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"value": request["x"]} if "x" in request else {"error": "no x"}), flush=True)
"""


def test_a_worker_answers_line_by_line(worker):
    echo = worker(ECHO)
    assert [echo.ask("echo", x=x)["value"] for x in ("a" * 100_000, 2)] == ["a" * 100_000, 2]
    with pytest.raises(throughput.Failure, match="no x"):
        echo.ask("echo")
    assert echo.ask("echo", x=3) == {"value": 3}


def test_a_worker_that_dies_or_hangs_is_a_failure(worker):
    with pytest.raises(throughput.Failure, match="status 3: gone"):
        worker("import sys; sys.stdin.readline(); print('gone', file=sys.stderr); sys.exit(3)").ask("echo")
    with pytest.raises(throughput.Failure, match="no answer to echo within 0"):
        worker("import time; time.sleep(60)", timeout=0.4).ask("echo")


def test_stand_ins_for_packages_that_are_not_there(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    importlib.import_module("purejaxrl_ppo").stub("absent.inner.deep", Thing=object)
    from absent.inner.deep import Thing  # pyright: ignore[reportMissingImports]

    assert Thing is object


def test_an_initialiser_in_a_loop_gives_what_the_batched_one_gives(monkeypatch):
    import jax

    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    one_at_a_time = importlib.import_module("purejaxrl_ppo").one_at_a_time
    initializer = one_at_a_time(jax.nn.initializers.normal)(2.0)
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(lambda key: initializer(key, (4, 2), "float32"))(keys)
    expected = [jax.nn.initializers.normal(2.0)(key, (4, 2), "float32") for key in keys]
    np.testing.assert_array_equal(found, np.stack(expected))
