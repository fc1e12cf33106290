"""Contradictory settings: rejected by name, with settings that work."""

import pytest

from pomcp_jax import config as config_lib
from pomcp_jax import presets, validation
from pomcp_jax.config import AgentConfig, ConfigError

RECORD = {"policy.prior": "stored"}
NO_PRIOR = {"policy.prior": "none", "policy.kl_coef": 0.0}
NO_VALUE = {"policy.q_source": "none", "policy.q_coef": 0.0}

# Preset, changes, the field that is named, and the ways out: words of the hint -> changes.
CONTRADICTIONS = [
    ("po_mpc", {"mppi.low": -0.5}, "mppi.low", {"-1 in training": {"mppi.low": -1.0}}),
    ("bmpc", {"mppi.high": 2.0}, "mppi.high", {"1 in training": {"mppi.high": 1.0}}),
    ("po_mpc", {"policy.q_source": "model"}, "policy.q_source", {
        "'critic'": {"policy.q_source": "critic"},
        "'none' when agent.world_model.critic is 'q'": NO_VALUE,
    }),
    ("qbmpc", {"policy.q_source": "critic"}, "policy.q_source", {
        "'model'": {"policy.q_source": "model"},
        "'none' when agent.world_model.critic is 'v'": NO_VALUE,
    }),
    ("po_mpc", {"world_model.critic": "v"}, "policy.q_source", {
        "'model'": {"policy.q_source": "model"},
    }),
    ("po_mpc", {"policy.q_source": "none"}, "policy.q_coef", {
        "must be 0": {"policy.q_coef": 0.0},
        "make that 'critic'": {"policy.q_source": "critic"},
    }),
    ("qbmpc", {"policy.q_source": "none"}, "policy.q_coef", {
        "must be 0": {"policy.q_coef": 0.0},
        "make that 'model'": {"policy.q_source": "model"},
    }),
    ("po_mpc", {**NO_PRIOR, **NO_VALUE, "policy.kl_coef": 1.0}, "policy.prior", {
        "must be a prior": {"policy.prior": "learned"},
    }),
    ("bmpc", {"policy.kl_coef": 0.0}, "policy.kl_coef", {
        "must be > 0 when agent.policy.q_source is 'none'": {"policy.kl_coef": 1.0},
    }),
    ("po_mpc", {"policy.prior": "none"}, "policy.kl_coef", {
        "must be 0": {"policy.kl_coef": 0.0},
        "make that 'learned'": {"policy.prior": "learned"},
    }),
    ("tdmpc2", {"policy.kl_coef": 1.0}, "policy.kl_coef", {
        "must be 0": {"policy.kl_coef": 0.0},
    }),
    ("po_mpc", {**NO_PRIOR, "policy.kl_tuning": "dual"}, "policy.kl_tuning", {
        "must be 'fixed'": {"policy.kl_tuning": "fixed"},
    }),
    ("po_mpc", {"policy.kl_coef": 0.0, "policy.kl_tuning": "dual"}, "policy.kl_coef", {
        "must be > 0": {"policy.kl_coef": 0.1},
    }),
    ("boom", {"policy.kl_tuning": "dual"}, "policy.kl_tuning", {
        "must be 'fixed'": {"policy.kl_tuning": "fixed"},
        "or 'calibrated' when agent.policy.divergence is": {"policy.kl_tuning": "calibrated"},
    }),
    ("po_mpc_direct", {"policy.proposer": "both"}, "policy.proposer", {
        "must be 'policy'": {"policy.proposer": "policy"},
        "unless agent.policy.prior is 'learned'": {"policy.prior": "learned"},
        "or 'mixture'": {"policy.prior": "mixture"},
    }),
    ("tdmpc2", {"policy.proposer": "prior"}, "policy.proposer", {
        "must be 'policy'": {"policy.proposer": "policy"},
    }),
    ("po_mpc", {"policy.proposer": "both", "mppi.num_proposals": 1}, "policy.proposer", {
        "must be 'policy'": {"policy.proposer": "policy"},
        "when agent.mppi.num_proposals is 1": {"mppi.num_proposals": 2},
    }),
    ("po_mpc", {"policy.proposer": "prior", "mppi.num_proposals": 0}, "policy.proposer", {
        "must be 'policy'": {"policy.proposer": "policy"},
        "when agent.mppi.num_proposals is 0": {"mppi.num_proposals": 1},
    }),
    ("po_mpc_direct", {"prior.gate": True}, "prior.gate", {
        "must be False": {"prior.gate": False},
        "unless agent.policy.prior is 'learned'": {"policy.prior": "learned"},
        "or 'mixture'": {"policy.prior": "mixture"},
    }),
    ("bmpc", {"critic.tail_action": "mode"}, "critic.tail_action", {
        "must be 'sample'": {"critic.tail_action": "sample"},
    }),
    ("po_mpc", {"critic.tail_penalty": 1.0, "critic.num_tail_heads": 1}, "critic.tail_penalty", {
        "must be 0": {"critic.tail_penalty": 0.0},
        "make that 2": {"critic.num_tail_heads": 2},
    }),
    # A forward KL from a point record, and any other divergence of one.
    ("po_mpc_direct", {"mppi.std_min": 0.0, "policy.divergence": "forward"},
     "policy.prior_std_min", {
        "must be > 0 when agent.mppi.std_min is 0": {"policy.prior_std_min": 0.05},
        "make that 0.05": {"mppi.std_min": 0.05},
    }),
    ("po_mpc", {"mppi.std_min": 0.0}, "policy.prior_std_min", {
        "must be > 0": {"policy.prior_std_min": 0.01},
    }),
    ("bmpc", {"replan.interval": 0}, "replan.interval", {
        "must be >= 1": {"replan.interval": 1},
        "make that 'stored'": {"policy.prior": "stored"},
    }),
    ("tdmpc2", {"replan.interval": 10}, "replan.interval", {
        "must be 0": {"replan.interval": 0},
    }),
    ("po_mpc", {"replan.select": "oldest"}, "replan.select", {
        "must be 'first'": {"replan.select": "first"},
        "make that 10": {"replan.interval": 10},
    }),
    ("boom", {"replan.interval": 10, "replan.select": "kl"}, "replan.select", {
        "must be 'first'": {"replan.select": "first"},
        "or 'oldest'": {"replan.select": "oldest"},
    }),
    ("po_mpc_direct", {"critic.target_actor": "prior"}, "critic.target_actor", {
        "must be 'policy'": {"critic.target_actor": "policy"},
        "unless agent.policy.prior is 'learned'": {"policy.prior": "learned"},
    }),
    ("bmpc", {"critic.target_actor": "stored"}, "critic.target_actor", {
        "must be 'policy'": {"critic.target_actor": "policy"},
    }),
    ("bmpc", {"critic.target_actor": "best"}, "critic.target_actor", {
        "must be 'policy'": {"critic.target_actor": "policy"},
    }),
    ("bmpc", {"critic.td_lambda": 0.5}, "critic.td_lambda", {
        "must be 0": {"critic.td_lambda": 0.0},
    }),
    ("po_mpc", {"critic.return_steps": 2}, "critic.return_steps", {
        "must be 0": {"critic.return_steps": 0},
        "or >= agent.mppi.horizon = 3": {"critic.return_steps": 3},
    }),
    ("bmpc", {"critic.return_steps": 5}, "critic.return_steps", {
        "must be 0": {"critic.return_steps": 0},
    }),
    ("po_mpc", {"critic.soft_target": True, "policy.kl_tuning": "calibrated"}, "policy.kl_tuning", {
        "must be 'fixed'": {"policy.kl_tuning": "fixed"},
        "or 'dual'": {"policy.kl_tuning": "dual"},
        "when agent.critic.soft_target is True": {"critic.soft_target": False},
    }),
    ("qbmpc", {"policy.prior": "learned", "prior.gate": True, "prior.gate_value": "critic"},
     "prior.gate_value", {
        "must be 'plan'": {"prior.gate_value": "plan"},
    }),
    ("tdmpc2", {"policy.q_scale": "prior"}, "policy.q_scale", {
        "must be 'states'": {"policy.q_scale": "states"},
    }),
    ("bmpc", {"policy.q_scale": "prior"}, "policy.q_scale", {
        "must be 'states'": {"policy.q_scale": "states"},
    }),
    ("po_mpc_direct", {"critic.soft_target": True}, "critic.soft_target", {
        "must be False": {"critic.soft_target": False},
        "unless agent.policy.prior is 'learned'": {"policy.prior": "learned"},
    }),
    ("po_mpc", {"critic.soft_target": True, "policy.prior": "mixture"}, "critic.soft_target", {
        "must be False": {"critic.soft_target": False},
        "unless agent.policy has prior 'learned'": {"policy.prior": "learned"},
    }),
    ("po_mpc", {"critic.soft_target": True, "critic.target_actor": "prior"}, "critic.soft_target", {
        "must be False": {"critic.soft_target": False},
        "agent.critic.target_actor is 'policy'": {"critic.target_actor": "policy"},
    }),
    ("boom", {"policy.q_scale": "prior"}, "policy.q_scale", {
        "must be 'states' when agent.policy.value_weight": {"policy.q_scale": "states"},
    }),
    ("qbmpc", {"critic.soft_target": True, "policy.prior": "learned"}, "critic.soft_target", {
        "must be False": {"critic.soft_target": False},
        "agent.world_model.critic is 'q'": {
            "world_model.critic": "q", "policy.q_source": "critic",
        },
    }),
    ("bmpc", {"policy.value_weight": True}, "policy.value_weight", {
        "must be False": {"policy.value_weight": False},
    }),
    ("boom", {"policy.divergence": "reverse"}, "policy.divergence", {
        "must be 'cross_entropy'": {"policy.divergence": "cross_entropy"},
        "when agent.world_model.squash is 'tanh'": {"world_model.squash": "clip"},
    }),
    ("po_mpc", {"world_model.squash": "tanh"}, "world_model.squash", {
        "must be 'clip'": {"world_model.squash": "clip"},
        "or 'clip_straight_through'": {"world_model.squash": "clip_straight_through"},
    }),
    ("po_mpc", {"replan.num_samples": 63}, "replan.num_samples", {
        "must be 0": {"replan.num_samples": 0},
        "or >= 64": {"replan.num_samples": 64},
    }),
]  # fmt: skip


def refusal(config):
    with pytest.raises(ConfigError) as error:
        validation.validate_agent(config)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "preset,changes,field,ways_out",
    CONTRADICTIONS,
    ids=[f"{preset}-{field}-{i}" for i, (preset, _, field, _) in enumerate(CONTRADICTIONS)],
)
def test_contradiction_is_refused_by_name_and_every_hint_works(preset, changes, field, ways_out):
    config = config_lib.replace(presets.get(preset), changes)
    value = config_lib.flatten(config)[field]
    text = refusal(config)
    assert text.startswith(f"agent.{field} = {value!r}: must be ")
    for words, way_out in ways_out.items():
        assert words in text
        validation.validate_agent(config_lib.replace(config, way_out))


RANGES = {
    "critic.num_tail_heads": 0,
    "mppi.num_samples": 2**31,
    "optimizer.batch_size": 0,
    "optimizer.decay_updates": -1,
    "policy.average_updates": -1,
    "replan.interval": -1,
    "replan.iterations": -1,
    "replan.num_samples": -1,
    "replan.proposal_log_std_max": -2.0,
    "replan.batch_size": 257,
    "world_model.latent_size": 12,
    "world_model.bin_high": -10.0,
    "world_model.log_std_max": -3.0,
    "critic.num_target_heads": 6,
    "policy.num_q_heads": 6,
    "policy.q_source": "value",
    "policy.kl_tuning": "auto",
    "policy.proposer": "planner",
    "policy.seed_record": "random",
    "replan.select": "newest",
    "prior.divergence": "cross_entropy",
    "prior.weight": "value",
}


@pytest.mark.parametrize("field", RANGES)
def test_a_value_out_of_range_is_refused_by_name(field):
    config = config_lib.replace(AgentConfig(), {field: RANGES[field]})
    assert refusal(config).startswith(f"agent.{field} = {RANGES[field]!r}: must be ")


def test_nothing_stands_for_a_number():
    with pytest.raises(ConfigError, match=r"policy\.kl_coef = None: must be float, not NoneType"):
        config_lib.replace(AgentConfig(), {"policy.kl_coef": None})


def test_every_rule_has_its_row_above():
    rows = [(preset, changes) for preset, changes, *_ in CONTRADICTIONS]
    rows += [("po_mpc", {field: RANGES[field]}) for field in RANGES]
    configs = [config_lib.replace(presets.get(preset), changes) for preset, changes in rows]
    for rule in validation.AGENT_RULES:
        lines = [rule(config) for config in configs if allowed(config)]
        assert any(lines), rule.__name__
        assert rule(AgentConfig()) is None


def allowed(config):
    """Whether every single value is valid for its field; rules are applied to such values only."""
    try:
        config_lib.check(config, "agent")
    except ConfigError:
        return False
    return True
