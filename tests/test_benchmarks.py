"""The benchmarks' own code: arguments, statistics and tables. Nothing is timed or trained."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
scores, tables, throughput, off_policy, side_by_side = map(
    importlib.import_module,
    ("control_scores", "tables", "control_throughput", "off_policy_throughput", "side_by_side"),
)
language_models, training, generation, grpo = map(
    importlib.import_module, ("language_models", "training", "generation", "grpo")
)

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


def test_the_readme_has_every_table():
    text = (FOLDER / "README.md").read_text()
    for marker in ("throughput", "scores", "off-policy", "parity", "training", "generation", "grpo"):
        assert "| marked |" in tables.between(text, marker, "| marked |")


def test_committed_results_still_make_tables():
    for path in sorted((FOLDER / "results").glob("*throughput_*.json")):
        content = tables.read(path)
        show = off_policy.show if content["benchmark"].startswith("off_policy") else throughput.table
        assert len({line.count("|") for line in show(content).splitlines()[2:]}) == 1
    for module in (training, generation, grpo):
        for path in sorted((FOLDER / "results").glob(f"{module.__name__}_*.json")):
            content = tables.read(path)
            rows = [line for line in module.table(content).splitlines() if line.startswith("| ")]
            assert len(rows) >= 2 + len(content["cases"])


def test_hardware_names_become_file_names():
    assert tables.slug("Intel(R) Xeon(R) CPU @ 2.10GHz, 1 core") == "intel-xeon-cpu-2.10ghz-1-core"


def test_only_selects_rows():
    assert [row.name for row in scores.parse(["--only", "a2c"]).rows] == ["a2c/CartPole-v1"]
    chosen = scores.parse(["--only", "CartPole-v1"]).rows
    assert chosen == [row for row in scores.ROWS if row.env == "CartPole-v1"] != []
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
    row = {"steps": 1_000_000, "seeds": 5, "target": -80, "met": True, "device": "a core"}
    row |= {"seconds": 61.4, "steps_per_second": 250_000.0}
    row["return"] = {"iqm": -79.06, "ci95": None, "per_seed": [-79.06] * 5}
    diverged = row | {"met": False, "return": {"iqm": None, "ci95": None, "per_seed": [None]}}
    rows = {"reinforce/CartPole-v1": diverged, "ppo/Acrobot-v1": row}
    lines = scores.table({"rows": rows}).splitlines()
    assert lines[2].startswith(
        "| ppo, Acrobot-v1 | 1M | 5 | −79.1 | −79.1 to −79.1 | −79.1 to −79.1 | -80 met | 61 | 250k |"
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


TIMED = """
import sys, json
for count, line in enumerate(sys.stdin, 1):
    print(json.dumps({"seconds": count}), flush=True)
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


OFF_POLICY_PEERS = ["--rejax-python", "/r/python", "--sb3-python", "/s/python"]


def rows(*words):
    return {row.name: row.systems for row in off_policy.plan(off_policy.parse([*words, *OFF_POLICY_PEERS]))}


def test_off_policy_rows_and_the_systems_of_each():
    found = rows("--cores", "1,0")
    assert list(found) == ["dqn/1", "dqn/8", "dqn-100k/1", "sac/1", "sac/8", "td3/1"]
    assert found["dqn/1"] == ["rljax", "rejax", "rejax-patched", "sb3", "sbx"]
    assert found["sac/8"] == list(off_policy.NAMES)
    assert found["dqn-100k/1"] == ["rljax", "rejax", "rejax-patched"]
    assert list(rows("--cores", "0", "--cases", "dqn-10k,pqn", "--seeds", "1,4")) == [
        f"{case}/{seeds}" for case in ("dqn-10k", "pqn") for seeds in (1, 4)
    ]
    assert rows("--cores", "0", "--cases", "pqn", "--seeds", "4")["pqn/4"] == ["rljax", "rejax"]
    assert rows("--gpu", "--cases", "sac") == {
        f"sac/{seeds}": ["rljax", "rejax", "rejax-patched"] for seeds in (1, 8, 64)
    }
    assert rows("--cores", "0", "--cases", "sac", "--seeds", "2", "--systems", "rljax,sbx,rejax-pmap") == {
        "sac/2": ["rljax", "sbx"]
    }
    assert [row.systems for row in off_policy.plan(off_policy.parse(["--cores", "0"]))] == [["rljax"]] * 6


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--cores 0,1, or --gpu"),
        (["--gpu", "--cores", "0"], "leave out --cores"),
        (["--cores", "0", "--cases", "ddpg"], "no case 'ddpg'"),
        (["--cores", "0", "--systems", "sbx"], "sbx needs --sb3-python"),
        (["--cores", "0", "--systems", "rejax-patched"], "needs --rejax-python"),
        (["--cores", "0", "--scale", "0"], "positive"),
        (["--cores", "0", "--parity", "--parity-seeds", "1"], "at least 2"),
    ],
)
def test_wrong_off_policy_arguments_are_named(words, complaint, capsys):
    with pytest.raises(SystemExit):
        off_policy.parse(words)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", list(off_policy.CASES))
def test_every_off_policy_case_is_a_config_that_learns_for_most_of_the_run(name, monkeypatch):
    from rljax import envs

    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    fields = importlib.import_module("rljax_off_policy").fields
    case = off_policy.CASES[name]
    for wanted in (case.steps, case.steps_of_several, case.settings["total_steps"]):
        asked = off_policy.request(name, wanted, 1)
        algorithm = importlib.import_module(f"rljax.algorithms.{asked['algorithm']}")
        config = algorithm.Config(**fields(asked))
        algorithm.make(envs.make(asked["env"]), config)
        rest = asked["steps"] - config.initial_steps
        assert rest % config.steps_per_iteration == 0
        assert wanted <= asked["steps"] < wanted + config.steps_per_iteration
        assert rest > 0.6 * asked["steps"]
        assert asked["steps"] % (2 * asked["num_envs"]) == 0  # Rejax's TD3 steps in pairs of rows


def test_systems_that_train_one_seed_are_asked_for_one():
    assert off_policy.how("sbx", 1) == {"library": "sbx", "seeds": 1}
    assert off_policy.how("rejax-patched-pmap", 1) == {"sampler": "patched"}
    assert off_policy.how("rejax-pmap", 1) == {"sampler": "published"}


def test_the_patched_sampler_is_uniform_over_what_is_filled(monkeypatch):
    import types

    import jax

    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    sample = importlib.import_module("rejax_off_policy").sample
    buffer = types.SimpleNamespace(data={"reward": np.arange(100.0)}, num_entries=10)
    drawn = np.asarray(sample(buffer, 20_000, jax.random.key(0))["reward"])
    counts = np.bincount(drawn.astype(int), minlength=100)
    assert counts[10:].sum() == 0
    assert abs(counts[:10] - 2_000).max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_off_policy_throughput_table():
    found = {
        "rljax": {"seconds": [1.0, 2.0, 4.0], "compile_seconds": [7.5]},
        "rejax": {"seconds": [4.0, 6.0, 8.0], "compile_seconds": [9.0]},
        "sb3": {"seconds": [20.0], "compile_seconds": [1.0]},
        "sbx": {"error": "no such file"},
    }
    summary = side_by_side.summarise(found, {}, 10_000)
    assert summary["sb3"]["rljax_is_faster_by"] == {"medians": 10.0, "rounds": [20.0]}
    case = {"case": "sac", "seeds": 8, "width": "2 cores", "systems": summary}
    content = {"benchmark": "off_policy_throughput", "hardware": "a core", "cases": {"sac/8": case}}
    lines = off_policy.show(json.loads(json.dumps(content))).splitlines()
    cells = lines[4].strip("| ").split(" | ")
    assert cells[:4] == ["SAC", "8 on 2 cores", "5.00k", "1.67k; **3.00** (2.00–4.00)"]
    assert cells[4:] == ["0.50k; **10.00** (20.00–20.00)", "failed", "7.5 / 9.0"]
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_parity_table():
    done = {"case": "td3", "system": "rljax", "steps": 10_000, "seconds": 9.6, "iqm": -160.04}
    done |= {"ci95": [-170.0, -150.0], "returns": [-160.04] * 5}
    failed = {"case": "td3", "system": "sb3", "steps": 10_000, "error": "gone"}
    content = {"benchmark": "off_policy_parity", "hardware": "a core", "cases": {"b": failed, "a": done}}
    lines = off_policy.show(content).splitlines()
    assert lines[4].startswith(
        "| TD3 | rljax | 10,000 | 5 | −160.0 | −160.0 to −160.0 | −160.0 to −160.0 | 10 |"
    )
    assert lines[5] == "| TD3 | Stable-Baselines3 | 10,000 | – | failed | – | – | – |"
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_slow_systems_are_timed_in_the_first_rounds(worker):
    with side_by_side.Contest(["a", "b"], {"a": "A", "b": "B"}) as contest:
        contest.workers = {name: worker(TIMED) for name in contest.names}
        contest.rounds(3, fewer={"b": 1})
    assert contest.found == {"a": {"seconds": [1.0, 2.0, 3.0]}, "b": {"seconds": [1.0]}}


def test_a_system_that_fails_leaves_the_others(worker, capsys):
    with side_by_side.Contest(["a", "b"], {"a": "A", "b": "B"}) as contest:
        contest.workers = {"a": worker(TIMED), "b": worker(ECHO)}
        contest.rounds(2)
    assert contest.running == ["a"]
    assert contest.found["b"] == {"error": "no x"}
    assert capsys.readouterr().out.count("B: no x") == 1


def test_results_of_one_file_are_of_one_hardware(tmp_path):
    path = tmp_path / "x.json"
    for name in ("a", "b"):
        assert side_by_side.keep(path, "some", "a core", name, {"steps": 1}) == path
    assert list(tables.read(path)["cases"]) == ["a", "b"]
    with pytest.raises(ValueError, match="name another --out"):
        side_by_side.keep(path, "some", "another core", "c", {})


def test_arguments_say_which_language_models_are_measured():
    found = training.parse(["--cores", "1"])
    assert (found.models, found.dtypes) == (["4.5m", "0.8m"], ["float32", "bfloat16"])
    assert (found.systems, found.steps, found.num_micro) == (["rljax", "torch"], 4, 0)
    found = training.parse(["--gpu", "--models", "1b", "--remat", "full", "--num-micro", "4"])
    assert (found.models, found.remat, found.num_micro) == (["1b"], "full", 4)
    found = generation.parse(["--gpu", "--models", "1b", "--dtypes", "bfloat16", "--kinds", "mixed"])
    assert (found.models, found.dtypes, found.kinds) == (["1b"], ["bfloat16"], ["mixed"])
    assert generation.parse(["--cores", "0"]).kinds == ["decode", "prefill"]
    found = grpo.parse(["--cores", "0", "--trl-python", "/t/python", "--seeds", "2"])
    assert (found.models, found.dtypes) == (["4.5m"], ["float32", "bfloat16"])
    assert (found.systems, found.cycles, found.seeds) == (["rljax", "parts", "trl"], 3, 2)
    assert found.torch_python == Path("/t/python")


@pytest.mark.parametrize("name", ["training", "generation", "grpo"])
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--cores 0, or --gpu"),
        (["--gpu", "--cores", "0"], "leave out --cores"),
        (["--cores", "0", "--models", "2b"], "no '2b': there are 4.5m"),
        (["--cores", "0", "--dtypes", "float16"], "no 'float16'"),
        (["--cores", "0", "--systems", "jax"], "no 'jax'"),
        (["--cores", "0", "--rounds", "0"], "positive"),
    ],
)
def test_wrong_language_model_arguments_are_named(name, words, complaint, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(name).parse(words)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--steps", "0"], "positive"),
        (["--chunk", "0"], "positive"),
        (["--num-micro", "3"], "divide the 8 rows of 4.5m"),
    ],
)
def test_wrong_training_arguments_are_named(words, complaint, capsys):
    with pytest.raises(SystemExit):
        training.parse(["--cores", "0", *words])
    assert complaint in capsys.readouterr().err


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
}


def test_work_of_a_language_model():
    # a layer: queries and output 8·8 each, keys and values 8·4 each, three matrices of 8·16; head 8·32
    assert language_models.weights(TINY) == (2 * (128 + 64 + 384), 256)
    # per token 6·1408, and 6·(scores and mixture over 5 of 10 columns: 2·5·8) in each of two layers
    assert language_models.training_flops(TINY, 10) == 6 * 1408 + 2 * 6 * 2 * 5 * 8
    # 2 rows, a prompt of 4 and 3 new: 6 tokens through the layers, 3 through the head; columns 8 + 5 + 6
    expected = 2 * (2 * 1152 * 6 + 2 * 256 * 3 + 4 * 2 * 8 * 19)
    assert language_models.generation_flops(TINY, 2, 4, 3) == expected
    weights = sum(language_models.weights(language_models.MODELS["1b"]))
    assert weights == pytest.approx(1.236e9, rel=1e-3)  # Llama-3.2-1B has 1.24 billion parameters


def test_generation_is_bounded_by_products_or_by_reading_the_weights():
    case = generation.Case("1b", "decode", 64, "bfloat16")
    assert (case.name, case.tokens) == ("1b/decode/64/bfloat16", 64 * 64)
    fast, slow = {"flops_per_second": 1e18}, {"bytes_per_second": 4e12}
    found = generation.bound(case, [fast | slow])
    assert found == pytest.approx(64 * 4e12 / (2 * 1.236e9), rel=1e-3)
    found = generation.bound(case, [{"flops_per_second": 1e12, "bytes_per_second": 1e18}])
    flops = language_models.generation_flops(language_models.MODELS["1b"], 64, 14, 64)
    assert found == pytest.approx(64 * 64 * 1e12 / flops)


def test_a_system_that_draws_other_completions_is_compared_by_its_own_tokens():
    found = {"rljax": {"seconds": [1.0, 2.0]}, "padded": {"seconds": [4.0, 4.0]}, "x": {"error": "gone"}}
    systems = side_by_side.summarise(found, {}, {"rljax": 300, "padded": 200})
    assert systems["rljax"]["steps_per_second"] == 200
    assert systems["padded"]["steps_per_second"] == 50
    assert systems["padded"]["rljax_is_faster_by"] == {"medians": 4.0, "rounds": [6.0, 3.0]}


def test_training_table():
    systems = {
        "rljax": {"tokens_per_second": 20_000.0, "compile_seconds": [31.4], "peak_bytes": 20_000_000_000},
        "torch": {"tokens_per_second": 16_000.0, "compile_seconds": [3.0], "peak_bytes": None},
        "torch-compiled": {"error": "gone"},
    }
    systems["rljax"] |= training.utilisation(400e12, 800e12, on_gpu=True)
    systems["torch"] |= training.utilisation(200e12, 800e12, on_gpu=True)
    systems["torch"]["rljax_is_faster_by"] = {"medians": 1.25, "rounds": [1.2, 1.3]}
    case = training.Case("1b", "bfloat16", remat="full", num_micro=2)
    assert case.name == "1b/bfloat16/remat=full/num_micro=2"
    assert (case.tokens, training.Case("1b", "bfloat16").name) == (16_384, "1b/bfloat16")
    whole = case._asdict() | {"settings": {"batch": 8, "length": 2048}, "systems": systems}
    content = {"hardware": "a card", "cases": {case.name: whole}}
    lines = training.table(json.loads(json.dumps(content))).splitlines()
    assert lines[0] == "**a card**"
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert "of 989 TFLOP/s" in lines[2]
    cells = lines[4].strip("| ").split(" | ")
    assert cells[:3] == ["1b, 8 x 2048, bfloat16, remat full, num micro 2", "20,000", "16,000"]
    assert cells[3:6] == ["**1.25** (1.20–1.30)", "failed", "–"]
    assert cells[6:] == ["400 / 200 / –", "50% / 25% / –", "40% / 20% / –", "31.4 / 3.0 / –", "20.00 / – / –"]
    for system in systems.values():
        system.pop("of_datasheet", None)
    assert "989" not in training.table(content)


def test_generation_table_has_a_part_for_mixed_lengths():
    ours = {"tokens_per_second": 3000.0, "of_limit": 0.5, "compile_seconds": [9.0], "peak_bytes": 10**9}
    theirs = {"tokens_per_second": 1000.0, "rljax_is_faster_by": {"medians": 3.0, "rounds": [3.0]}}
    cases = {}
    for kind, peer in (("decode", "torch"), ("mixed", "padded")):
        case = generation.Case("4.5m", kind, 64, "float32")
        cases[case.name] = case._asdict() | {"systems": {"rljax": ours, peer: theirs}}
    lines = generation.table({"hardware": "a core", "cases": cases}).splitlines()
    row = "| 4.5m decode, 64, float32 | 3,000 | 1,000 | **3.00** (3.00–3.00) | 50% | 9.0 | 1.00 / – |"
    assert (lines[0], lines[4]) == ("**a core**", row)
    assert "| decode_many, tokens/s | padded batches, tokens/s |" in lines[6]
    assert lines[8] == row.replace("decode", "mixed")


def test_work_of_a_cycle_of_grpo():
    # 8 prompts of 14 tokens through the layers and once through the head; 64 rows of 63 more tokens, whose
    # attention reads 15 to 77 columns; and the update twice that again
    prompts = 8 * (2 * 1152 * 14 + 2 * 256 + 4 * 2 * 8 * 14 * 14 / 2)
    decode = 64 * (2 * (1152 + 256) * 63 + 4 * 2 * 8 * sum(range(15, 78)))
    assert grpo.cycle_flops(TINY) == 4 * (prompts + decode)


def test_grpo_table():
    ours = {"seconds_per_cycle": 1.5, "of_matmul": 0.5, "compile_seconds": [9.0], "peak_bytes": 10**9}
    ours["parts"] = {"prefill": 0.01, "decode": 0.5, "reward": 0.0, "update": 1.0}
    theirs = {"seconds_per_cycle": 4.5, "rljax_is_faster_by": {"medians": 3.0, "rounds": [2.9, 3.1]}}
    case = grpo.Case("4.5m", "float32")
    systems = {"rljax": ours, "parts": {"error": "gone"}, "trl": theirs}
    alone = grpo.Case("0.1m", "float32")
    cases = {
        case.name: case._asdict() | {"systems": systems},
        alone.name: alone._asdict() | {"systems": {"rljax": ours}},
    }
    lines = grpo.table({"hardware": "a core", "cases": cases}).splitlines()
    assert lines[0] == "**a core**"
    assert len({line.count("|") for line in lines[2:]}) == 1
    first, second = (line.strip("| ").split(" | ") for line in lines[4:])
    assert first[:6] == ["4.5m, float32", "1.5", "failed", "–", "4.5", "**3.00** (2.90–3.10)"]
    assert first[6:] == ["0.01 / 0.5 / 0 / 1", "50%", "9", "1.00"]
    assert second[:6] == ["0.1m, float32", "1.5", *["–"] * 4]


@pytest.fixture
def peer():
    """Starts one of peers/*.py on a core of this process."""
    import os

    started = []

    def start(script):
        started.append(side_by_side.start(script, None, [min(os.sched_getaffinity(0))], 240.0))
        return started[-1]

    yield start
    for each in started:
        each.close()


TRAINING = {"shape": TINY, "batch": 4, "length": 16, "steps": 2, "text": 1000, "num_micro": 2, "chunk": 8}
TRAINING |= {"remat": "full", "loop": "scanned"}
GENERATION = {"shape": TINY, "batch": 2, "prompt": 9, "new": 4, "repeats": 2, "prompts": 4, "mean": 8}


@pytest.mark.parametrize("system", ["rljax", "torch"])
def test_training_workers(system, peer):
    if system == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    worker = peer(f"{system}_training.py")
    assert worker.ask("describe")["platform"] == "cpu"
    assert worker.ask("compile", **TRAINING, dtype="bfloat16", system=system)["seconds"] > 0
    assert worker.ask("time")["seconds"] > 0
    loss = worker.ask("measure")["value"]
    assert loss == pytest.approx(np.log(TINY["vocab_size"]), abs=0.1)  # of random tokens
    assert worker.ask("memory")["bytes"] > 0


@pytest.mark.parametrize(
    ("system", "kind"),
    [("rljax", "decode"), ("torch", "decode"), ("rljax", "mixed"), ("padded", "mixed")],
)
def test_generation_workers(system, kind, peer):
    if system == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    worker = peer("torch_generation.py" if system == "torch" else "rljax_generation.py")
    worker.ask("compile", **GENERATION, dtype="bfloat16", system=system, kind=kind)
    assert worker.ask("time")["seconds"] > 0
    tokens = worker.ask("measure")["value"]
    assert tokens == 2 * 4 if kind == "decode" else 4 <= tokens <= 4 * 4


@pytest.mark.parametrize("system", ["rljax", "parts", "seeds"])
def test_grpo_workers(system, peer):
    worker = peer("rljax_grpo.py")
    asked = {"shape": TINY, "prompts": 2, "group": 2, "prompt": 3, "new": 4, "cycles": 1, "seeds": 2}
    worker.ask("compile", **asked, dtype="bfloat16", system=system)
    assert worker.ask("time")["seconds"] > 0
    parts = worker.ask("measure")["value"]
    assert (parts is None) == (system != "rljax")
    if parts:
        assert list(parts) == list(grpo.PARTS)


def test_the_limit_worker(peer):
    worker = peer("language_limit.py")
    worker.ask("compile", size=64, dtype="bfloat16", bytes=4096)
    assert min(worker.ask("measure")["value"].values()) > 0
