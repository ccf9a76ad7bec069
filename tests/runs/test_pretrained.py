"""The language model of a run: its parameters, adapted or not, without the data that it learnt."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, sft, text
from rljax.cli import main
from rljax.models import huggingface
from rljax.runs import load
from rljax.runs.folder import files
from rljax.text.data import Pairs
from rljax.types import Prompts, Reward, Task
from tests.algorithms.tasks import SCORING, preferences_task, started_task
from tests.algorithms.test_text_algorithms import by_hand

FIXTURE = Path(__file__).parents[1] / "models" / "fixtures" / "llama"
CONFIG = {"length": 8, "batch_size": 4, "chunk": 8, "learning_rate": 1e-2, "total_steps": 6 * 32}
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that say a number backwards, and a model with a tokenizer beside them."""
    where = tmp_path_factory.mktemp("data")
    pairs = [{"prompt": f"{number:02d}", "completion": f"{number:02d}"[::-1]} for number in range(40)]
    (where / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    shutil.copytree(FIXTURE, where / "model")
    text.character_tokenizer("0123456789").save(where / "model")
    return where


def corpus(data: Path, **fields: Any) -> text.Corpus:
    return text.Corpus(data / "pairs.jsonl", model=data / "model", **fields)


def held_out_loss(task: Task, found: text.Pretrained) -> float:
    total, count = by_hand(found.model, found.params, task.held_out)
    return total / count


@pytest.fixture(scope="module")
def adapted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of LoRA that differ in alpha."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    config = CONFIG | {"train": "lora", "patterns": ("attention/*", "mlp/*"), "rank": 2}
    rljax.sweep("sft", corpus(data), {"alpha": [1.0, 64.0]}, config, out=out, progress=False)
    return out / "part-000"


@pytest.fixture(scope="module")
def own(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the Config's sizes, two seeds."""
    out = tmp_path_factory.mktemp("runs") / "own"
    alone = text.Corpus(data / "pairs.jsonl")
    rljax.train("sft", alone, CONFIG | SIZES, seeds=2, out=out, checkpoint_every=3, progress=False)
    return out


def test_adapters_of_each_member_are_merged_into_the_base(adapted: Path, data: Path) -> None:
    told = json.loads((adapted / "summary.json").read_text())["loss"]["per_seed"]
    task = sft.read(corpus(data), sft.Config(**CONFIG))
    losses = [held_out_loss(task, rljax.language_model(adapted, member)) for member in range(2)]
    np.testing.assert_allclose(losses, told, rtol=1e-5)
    assert abs(told[0] - told[1]) > 1e-3


def test_a_prefix_keeps_its_base_and_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    config, out = CONFIG | {"train": "prefix", "prefix_length": 2}, tmp_path / "run"
    result = rljax.train("sft", corpus(data), config, out=out, progress=False)
    task, found = sft.read(corpus(data), sft.Config(**CONFIG)), rljax.language_model(out)
    np.testing.assert_allclose(held_out_loss(task, found), result.summary["loss"]["mean"], rtol=1e-5)
    settings = text.Sampling(temperature=0.0, max_new_tokens=3)
    written = text.decode_many(found.model, found.params, jax.random.key(0), [[2, 3]], settings, ())
    assert written[0].tokens.size
    assert main(["convert", str(out), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()
    problem = text.tasks.make("addition", train=4, held_out=2)
    with pytest.raises(ValueError, match="has trained a prefix, which the parameters of its model cannot"):
        rljax.train("grpo", problem, init=out, progress=False)


def test_all_parameters_need_neither_data_nor_base(data: Path, tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "model"):
        copy = shutil.copytree if (data / name).is_dir() else shutil.copy
        copy(data / name, tmp_path / name)
    settings = json.loads((tmp_path / "model" / "config.json").read_text()) | {"eos_token_id": 7}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model" / "generation_config.json").unlink(missing_ok=True)
    task = sft.read(corpus(tmp_path), sft.Config(**CONFIG))
    out = tmp_path / "run"
    result = rljax.train("sft", corpus(tmp_path), CONFIG, out=out, progress=False)
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "pairs.jsonl").unlink()
    found = rljax.language_model(out)
    np.testing.assert_allclose(held_out_loss(task, found), result.summary["loss"]["mean"], rtol=1e-5)
    assert found.generation.stop_ids == (7, found.tokenizer.eos_id)  # its own, and what it has learnt
    assert found.tokenizer.encode("09") == [2, 11]


def test_a_model_of_the_configs_sizes(own: Path, data: Path) -> None:
    told = json.loads((own / "summary.json").read_text())["loss"]["per_seed"]
    task = sft.read(text.Corpus(data / "pairs.jsonl"), sft.Config(**CONFIG))
    found = rljax.language_model(own, 1)
    np.testing.assert_allclose(held_out_loss(task, found), told[1], rtol=1e-5)
    assert found.generation.stop_ids == (found.tokenizer.eos_id,)
    earlier = rljax.language_model(own, 1, checkpoint_iteration=3)
    assert held_out_loss(task, earlier) > told[1]
    half = rljax.language_model(own, 1, dtype=jnp.bfloat16)
    assert half.params["embedding"].dtype == half.model.config.dtype == jnp.bfloat16


def test_generate_and_convert_take_a_run(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert main(["convert", str(own), str(new), "--member", "1", "--checkpoint", "3"]) == 0
    capsys.readouterr()
    wanted = rljax.language_model(own, 1, checkpoint_iteration=3)
    found = text.load_pretrained(new)
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.generation.stop_ids == (1,)
    words = ["--prompt", "07", "--temperature", "0"]
    assert main(["generate", str(new), *words]) == 0
    told = capsys.readouterr().out
    assert main(["generate", str(own), *words, "--member", "1", "--checkpoint", "3"]) == 0
    assert capsys.readouterr().out == told
    assert told.startswith("07")
    assert len(told) <= 9 + 1  # one token more than the model has positions


def test_a_run_stops_where_it_has_learnt_to_end(adapted: Path, data: Path, tmp_path: Path) -> None:
    """The tokenizer's end is none of the stop tokens of the model that it began with."""
    base = text.load_pretrained(data / "model")
    assert base.tokenizer.eos_id not in base.generation.stop_ids
    found = rljax.language_model(adapted)
    assert found.generation.stop_ids == (*base.generation.stop_ids, base.tokenizer.eos_id)
    assert main(["convert", str(adapted), str(tmp_path / "new")]) == 0
    assert text.load_pretrained(tmp_path / "new").generation.stop_ids == found.generation.stop_ids


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
def test_torch_transformers_open_what_convert_writes(adapted: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    assert main(["convert", str(adapted), str(tmp_path / "new"), "--member", "1"]) == 0
    found = rljax.language_model(adapted, 1)
    tokens = np.array([[2, 5, 3, 9]])
    ours = found.model.logits(found.params, found.model.forward(found.params, jnp.asarray(tokens)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new")(torch.tensor(tokens)).logits
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)


def test_what_a_run_lacks_is_one_line(
    own: Path, adapted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: Path, says: str, *words: str) -> None:
        assert main(["generate", str(run), "--prompt", "0", *words]) == 2
        told = capsys.readouterr().err
        assert says in told
        assert told.count("\n") == 1

    def changed(run: Path, name: str, **told: Any) -> Path:
        shutil.copytree(run, tmp_path / name)
        path = tmp_path / name / "config.json"
        content = json.loads(path.read_text()) | told
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return tmp_path / name

    fails(own, "has members 0 to 1", "--member", "2")
    fails(own, "has no checkpoint of iteration 4", "--checkpoint", "4")
    fails(data / "model", "--member and --checkpoint are of runs", "--member", "0")
    fails(adapted.parent, "is a sweep: name one of its runs")
    fails(changed(own, "network", own=["network"]), "has a network of your own")
    fails(changed(own, "model", own=["env", "model"]), "has a model of your own that no checkpoint describes")
    fails(changed(own, "control", task=None, env="X"), "is sft on X: it has no language model")
    fails(changed(adapted, "python", corpus={}), "adapts parameters that Python gave")
    sums = json.loads((adapted / "config.json").read_text())["frozen"]
    other = changed(adapted, "other", frozen=sums | {"params": "0"})
    fails(other, "is no longer the model that")
    mute = changed(own, "mute")
    shutil.rmtree(mute / "tokenizer")
    fails(mute, "has no tokenizer")


def test_a_model_of_ones_own_that_a_checkpoint_can_describe_is_kept(data: Path, tmp_path: Path) -> None:
    model, params, tokenizer, generation = text.load_pretrained(data / "model")
    read = sft.read(corpus(data), sft.Config(**CONFIG))
    task = Task("own", 40, read.learn, read.held_out, params, tokenizer, model, generation)
    described = files.describe(load.setup(algorithms.find("sft"), task, CONFIG, None, {}), {}, [0], 1, False)
    assert described["own"] == ["env", "model"]
    files.keep(tmp_path, task)
    found, settings = huggingface.load_config(tmp_path / "model")
    assert (found.config, settings) == (model.config, generation)
    files.keep(tmp_path / "none", task._replace(model=model._replace(config=None)))
    assert not (tmp_path / "none" / "model").exists()


JUDGING = SCORING | {"normalization_samples": 12, "total_steps": 24}


def given(reward: Reward, samples: Any) -> np.ndarray:
    """What a reward gives saved samples."""
    prompt = np.where(samples.valid, samples.prompt, -1)
    completion = np.where(samples.mask, samples.completion, -1)
    return np.asarray(jax.jit(reward.apply)(reward.params, prompt, completion, None))


def hand_padded(prompt: list[int], completion: list[int]) -> Pairs:
    """One row as `given` reads it."""
    x, y = np.array([prompt]), np.array([completion])
    return Pairs(x, x >= 0, y, y >= 0)


def test_the_members_of_a_reward_model_judge_alone_and_together(tmp_path: Path) -> None:
    tokenizer = text.character_tokenizer("12345678")
    task = preferences_task()._replace(tokenizer=tokenizer)
    result = rljax.train("reward_model", task, JUDGING, seeds=3, out=tmp_path / "run", progress=False)
    samples = [jax.tree.map(lambda x, i=i: x[i], result.states.samples) for i in range(3)]
    for member in range(3):
        found = given(rljax.load_reward(tmp_path / "run", member), samples[member])
        np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)  # after training
    alone = [given(rljax.load_reward(tmp_path / "run", member), samples[0]) for member in range(3)]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    together = rljax.load_reward(tmp_path / "run", name="liked", weight=2.0)
    assert (together.name, together.weight, together.host) == ("liked", 2.0, False)
    np.testing.assert_allclose(given(together, samples[0]), np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)
    said, answers, end = ["12", "4"], ["7", "5678"], [tokenizer.eos_id]
    rows = [(tokenizer.encode(x), tokenizer.encode(y) + end) for x, y in zip(said, answers, strict=True)]
    alike = [given(together, hand_padded(*row)).item() for row in rows]
    scores = text.rewards.score_texts(together, said, answers)
    np.testing.assert_allclose(scores, alike, rtol=1e-4, atol=1e-5)
    least = rljax.load_reward(tmp_path / "run", ensemble="min")
    np.testing.assert_allclose(given(least, samples[0]), np.min(alone, axis=0), rtol=1e-4, atol=1e-5)
    prompts = Prompts(task.learn.tokens, task.learn.valid)
    other = text.character_tokenizer("abcdefgh")
    judged = Task("t", 11, prompts, prompts, tokenizer=tokenizer, rewards=(together,), max_new_tokens=5)
    text.rewards.check(judged)
    with pytest.raises(ValueError, match="reward liked has another vocabulary"):
        text.rewards.check(judged._replace(tokenizer=other))
    with pytest.raises(ValueError, match="members 0 to 2"):
        rljax.load_reward(tmp_path / "run", 3)
    with pytest.raises(ValueError, match=r"is a reward model: rljax\.load_reward"):
        rljax.language_model(tmp_path / "run")


@pytest.mark.parametrize("adapted", [{"train": "lora", "rank": 2}, {"train": "prefix", "prefix_length": 2}])
def test_adapters_of_a_reward_model_are_joined_to_the_base_that_is_given(
    tmp_path: Path, adapted: dict
) -> None:
    task = started_task()
    config = JUDGING | adapted
    result = rljax.train("reward_model", task, config, out=tmp_path / "run", progress=False)
    samples = jax.tree.map(lambda x: x[0], result.states.samples)
    with pytest.raises(ValueError, match="adapts parameters that Python gave"):
        rljax.load_reward(tmp_path / "run")
    with pytest.raises(ValueError, match="base is no longer the model"):
        rljax.load_reward(tmp_path / "run", base=jax.tree.map(lambda x: x + 1, task.params))
    found = given(rljax.load_reward(tmp_path / "run", base=task.params), samples)
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)


def test_an_unnormalised_reward_model_has_to_be_allowed(tmp_path: Path) -> None:
    config = SCORING | {"normalization": "none", "total_steps": 8}
    result = rljax.train("reward_model", preferences_task(), config, out=tmp_path / "run", progress=False)
    assert result.states.samples is None
    with pytest.raises(ValueError, match="is an unnormalised reward model: train it") as caught:
        rljax.load_reward(tmp_path / "run")
    assert "\n" not in str(caught.value)
    params = rljax.load_reward(tmp_path / "run", unnormalised=True).params
    assert (float(params["gain"]), float(params["bias"])) == (1.0, 0.0)


def test_what_is_no_reward_model_gives_no_reward(own: Path) -> None:
    with pytest.raises(ValueError, match="is sft, no reward model: train reward_model"):
        rljax.load_reward(own)
