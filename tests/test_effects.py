"""Settings without effect: one warning each, and none for defaults."""

from pathlib import Path

import pytest

from experiments import run, suites, sweep
from experiments.configs import brax, debug, dm_control, humanoid, quickstart, small
from experiments.launchers import plans
from experiments.launchers.study import Study
from pomcp_jax import config as config_lib
from pomcp_jax import effects, envs, presets, validation
from pomcp_jax.config import Config

ROOT = Path(__file__).parent.parent

RECORD = {"policy.prior": "stored", "policy.kl_coef": 1.0}

# Preset, changes, the field that has no effect, and changes that give it one.
WARNED = [
    ("tdmpc2", {"policy.kl_gate": 1.0}, "policy.kl_gate", RECORD),
    ("tdmpc2", {"policy.kl_dim_power": 1.0}, "policy.kl_dim_power", RECORD),
    ("tdmpc2", {"policy.kl_scale": "q"}, "policy.kl_scale", RECORD),
    ("tdmpc2", {"policy.divergence": "cross_entropy"}, "policy.divergence",
     RECORD),
    ("tdmpc2", {"policy.value_weight": True}, "policy.value_weight", RECORD),
    ("tdmpc2", {"policy.prior_std_min": 0.1}, "policy.prior_std_min", RECORD),
    ("tdmpc2", {"policy.prior_std_from": "policy"}, "policy.prior_std_from",
     RECORD),
    ("tdmpc2", {"policy.seed_record": "action"}, "policy.seed_record", RECORD),
    ("tdmpc2", {"mppi.record": "mean"}, "mppi.record", RECORD),
    ("po_mpc", {"policy.kl_coef": 0.0, "policy.kl_gate": 1.0}, "policy.kl_gate", {}),
    ("po_mpc_direct", {"prior.divergence": "forward"}, "prior.divergence",
     {"policy.prior": "learned"}),
    ("po_mpc_direct", {"prior.weight": "precision"}, "prior.weight", {"policy.prior": "learned"}),
    ("po_mpc", {"prior.half_life": 0.2}, "prior.half_life", {"prior.weight": "recent"}),
    ("po_mpc", {"prior.advantage_temperature": 0.2}, "prior.advantage_temperature",
     {"prior.weight": "advantage"}),
    ("po_mpc", {"policy.prior_mix": 0.1}, "policy.prior_mix", {"policy.prior": "mixture"}),
    ("po_mpc", {"policy.kl_target": 1.0}, "policy.kl_target", {"policy.kl_tuning": "dual"}),
    ("po_mpc", {"policy.dual_rate": 1.0}, "policy.dual_rate", {"policy.kl_tuning": "dual"}),
    ("po_mpc", {"policy.bias_limit": 2.0}, "policy.bias_limit",
     {"policy.kl_tuning": "calibrated"}),
    ("po_mpc", {"policy.bias_steps": 9}, "policy.bias_steps",
     {"policy.kl_tuning": "calibrated"}),
    ("po_mpc", {"policy.kl_tuning": "dual", "policy.dual_rate": 0.0}, "policy.kl_tuning",
     {"policy.dual_rate": 0.1}),
    ("po_mpc", {"policy.value_weight_temperature": 2.0}, "policy.value_weight_temperature",
     {"policy.value_weight": True}),
    ("po_mpc", {"policy.seed_std": 2.0}, "policy.seed_std", {"policy.seed_record": "action"}),
    ("po_mpc", {"policy.entropy_coef": 0.0, "policy.entropy": "squashed"}, "policy.entropy",
     {"policy.entropy_coef": 0.1}),
    ("bmpc", {"policy.q_reduce": "min"}, "policy.q_reduce",
     {"policy.q_source": "model", "policy.q_coef": 1.0}),
    ("po_mpc", {"critic.soft_target_clip": 1.0}, "critic.soft_target_clip",
     {"critic.soft_target": True}),
    ("po_mpc", {"prior.gate_value": "critic"}, "prior.gate_value", {"prior.gate": True}),
    ("po_mpc_gated", {"prior.gate_tolerance": 1.0}, "prior.gate_tolerance",
     {"policy.kl_tuning": "calibrated"}),
    ("po_mpc_gated", {"policy.kl_tuning": "calibrated", "policy.dual_rate": 0.0,
                      "prior.gate_tolerance": 1.0},
     "prior.gate_tolerance", {"policy.dual_rate": 0.1}),
    ("po_mpc", {"mppi.temperature": 0.0, "mppi.temperature_scale": "spread"},
     "mppi.temperature_scale", {"mppi.temperature": 1.0}),
    ("po_mpc", {"mppi.interpolation": "cubic"}, "mppi.interpolation", {"mppi.knots": 3}),
    ("po_mpc", {"mppi.horizon": 1, "critic.td_lambda": 0.5}, "critic.td_lambda",
     {"mppi.horizon": 2}),
    ("po_mpc", {"critic.return_steps": 5}, "critic.return_steps", {"critic.td_lambda": 1.0}),
    ("po_mpc", {"optimizer.termination_coef": 2.0}, "optimizer.termination_coef",
     {"world_model.termination": True}),
    ("po_mpc", {"replan.num_samples": 256}, "replan.num_samples", {"replan.interval": 1}),
    ("po_mpc", {"replan.iterations": 2}, "replan.iterations", {"replan.interval": 1}),
    ("po_mpc", {"replan.batch_size": 2}, "replan.batch_size", {"replan.interval": 1}),
    ("po_mpc", {"replan.proposal_log_std_min": -3.0}, "replan.proposal_log_std_min",
     {"replan.interval": 1}),
    ("po_mpc", {"replan.proposal_log_std_max": 0.5}, "replan.proposal_log_std_max",
     {"replan.interval": 1}),
]  # fmt: skip


def names(config):
    return [line.partition(" = ")[0] for line in effects.without_effect(config)]


@pytest.mark.parametrize("preset,changes,field,way_out", WARNED, ids=[w[2] for w in WARNED])
def test_a_setting_without_effect_is_named_with_the_reason(preset, changes, field, way_out):
    agent = config_lib.replace(presets.get(preset), changes)
    validation.validate_agent(agent)  # it is no error
    lines = effects.without_effect(Config(agent=agent))
    line = next(line for line in lines if line.startswith(f"agent.{field} = "))
    assert ": has no effect, " in line and "\n" not in line
    if way_out:
        assert f"agent.{field}" not in names(Config(agent=config_lib.replace(agent, way_out)))
    default = config_lib.flatten(Config())[f"agent.{field}"]
    assert f"agent.{field}" not in names(Config(agent=config_lib.replace(agent, {field: default})))


def test_settings_of_training():
    config = config_lib.replace(Config(), {"train.max_seed_resets": 5, "train.pretrain_updates": 0,
                                           "agent.policy.train_in_pretraining": False})  # fmt: skip
    assert names(config) == ["train.max_seed_resets", "agent.policy.train_in_pretraining"]
    config = config_lib.replace(Config(), {"agent.policy.kl_tuning": "calibrated"})
    assert names(config) == []
    idle = config_lib.replace(config, {"train.updates_per_decision": 0.0})
    assert names(idle) == ["agent.policy.kl_tuning"]
    # Updates before training see the outcomes of the agent's actions if it acts while seeding.
    assert config.train.pretrain_updates > 0
    assert names(config_lib.replace(idle, {"train.seed_actions": "planner"})) == []
    idle = config_lib.replace(idle, {"train.pretrain_updates": 0})
    assert names(idle) == ["agent.policy.kl_tuning"]
    config = config_lib.replace(Config(), {"agent.policy.data_std": 0.1})
    assert names(config) == ["agent.policy.data_std"]
    config = config_lib.replace(config, {"train.buffer": "a.npz"})
    assert names(config) == []
    config = config_lib.replace(config, {"agent.policy.data_record": "none"})
    assert names(config) == ["agent.policy.data_std"]


@pytest.mark.parametrize("file", [brax, debug, dm_control, humanoid, quickstart, small])
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_no_preset_and_no_file_of_ours_is_warned_about(file, preset):
    config = config_lib.from_dict(Config, file.get_config(f",{preset}").to_dict())
    assert effects.without_effect(config) == []
    for size in presets.SIZES:
        assert names(Config(agent=presets.with_size(presets.get(preset), size))) == []


@pytest.mark.parametrize("suite", suites.SUITES)
def test_no_suite_of_ours_is_warned_about(suite, monkeypatch):
    monkeypatch.setattr(envs, "check_assets", lambda name, assets: None)
    monkeypatch.chdir(ROOT)
    study = Study(suite, suites.SUITES[suite], Path("out"), Path("work"))
    for plan in plans.make_plans(study):
        assert effects.without_effect(plan.config) == []


def test_every_rule_can_be_broken():
    broken = set()
    for preset, changes, *_ in WARNED:
        config = Config(agent=config_lib.replace(presets.get(preset), changes))
        broken |= {line.split(", ", 1)[1] for line in effects.without_effect(config)}
    assert {rule.why for rule in effects.RULES} - broken == {
        "train.on_broken_seed is not 'reset'", "train.pretrain_updates is 0",
        "train.updates_per_decision is 0: nothing is learned after the first plan",
        "train.buffer is empty", "agent.policy.data_record is not 'action', or there is no prior",
    }  # fmt: skip


def test_programs_warn_once_at_their_start(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    flags = ["--config=experiments/configs/debug.py", "--print_config", f"--workdir={tmp_path}/a"]
    assert run.main(["run", *flags, "--config.agent.policy.prior_mix=0.1"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: agent.policy.prior_mix = 0.1: has no effect, ")
    assert error.count("\n") == 1
    assert sweep.main(["sweep", *flags, "--grid=policy.dual_rate=0.1,0.2"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: agent.policy.dual_rate = ") and error.count("\n") == 1
