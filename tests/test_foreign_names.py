"""Fields by the names that other libraries give them lead to ours."""

import pytest

import rljax
from rljax import algorithms
from rljax.learning import foreign_names
from rljax.runs import presets

# What users of SB3, CleanRL, PureJaxRL, Rejax and TRL would write, for an algorithm of each kind.
TABLE = {
    "ppo": {
        "gamma": "discount",
        "gae_lambda": "trace_decay",
        "ent_coef": "entropy_coefficient",
        "vf_coef": "value_coefficient",
        "clip_range": "clip",
        "clip_coef": "clip",
        "clip_eps": "clip",
        "n_steps": "num_steps",
        "n_epochs": "num_epochs",
        "update_epochs": "num_epochs",
        "batch_size": "num_minibatches",
        "lr": "learning_rate",
        "anneal_lr": "schedule",
        "norm_adv": "advantage_normalization",
        "net_arch": "hidden_sizes",
    },
    "dqn": {
        "tau": "target_rate",
        "target_network_frequency": "target_every",
        "replay_size": "buffer_size",
        "buffer_capacity": "buffer_size",
        "train_freq": "train_every",
        "train_frequency": "train_every",
        "exploration_final_eps": "epsilon_end",
        "start_e": "epsilon_start",
        "epsilon": "epsilon_start",
    },
    "sac": {"ent_coef": "initial_temperature", "polyak": "target_rate", "gradient_steps": "num_updates"},
    "td3": {"policy_frequency": "policy_delay", "pi_lr": "learning_rate"},
    "grpo": {
        "num_generations": "group_size",
        "beta": "kl",
        "epsilon": "clip",
        "epsilon_high": "clip_high",
        "max_completion_length": "max_new_tokens",
        "per_device_train_batch_size": "num_prompts",
        "scale_rewards": "advantage",
        "lora_r": "rank",
        "loss_type": "loss",
    },
    "rlhf_ppo": {"kl_coef": "kl", "cliprange_value": "value_clip", "missing_eos_penalty": "missing_end"},
    "dpo": {
        "loss_type": "loss",
        "simpo_gamma": "margin",
        "lora_alpha": "alpha",
        "warmup_ratio": "warmup_fraction",
    },
    "sft": {"per_device_train_batch_size": "batch_size", "num_train_epochs": "total_steps"},
}


@pytest.mark.parametrize("name", TABLE)
def test_a_foreign_name_leads_to_ours(name: str) -> None:
    algorithm = algorithms.find(name)
    for foreign, ours in TABLE[name].items():
        with pytest.raises(ValueError, match=rf"^{name}\.Config has no field {foreign}; here it is {ours}$"):
            presets.config_for(algorithm, "X", {foreign: 1})


def test_every_name_of_the_table_is_a_field_of_some_algorithm() -> None:
    fields = {field.name for name in algorithms.NAMES for field in algorithms.find(name).fields()}
    assert {name for names in foreign_names.OURS.values() for name in names} <= fields


def test_train_and_sweep_say_it() -> None:
    with pytest.raises(ValueError, match="no field gamma; here it is discount"):
        rljax.train("ppo", "CartPole-v1", {"gamma": 0.9})
    with pytest.raises(ValueError, match="no field gamma; here it is discount"):
        rljax.sweep("ppo", "CartPole-v1", {"gamma": [0.9, 0.99]})
