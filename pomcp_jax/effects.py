"""Settings without effect because of other settings: allowed, but probably a mistake."""

from collections.abc import Callable
from typing import NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax import values
from pomcp_jax.config import AgentConfig, Config


class Rule(NamedTuple):
    """Fields that are not read under a condition, and the reason."""

    idle: Callable[[Config], bool]
    why: str
    fields: tuple[str, ...]
    """Without ``agent.``."""


def _agent(idle: Callable[[AgentConfig], bool], why: str, *fields: str) -> Rule:
    return Rule(lambda config: idle(config.agent), why, tuple(f"agent.{f}" for f in fields))


RULES: tuple[Rule, ...] = (
    _agent(
        lambda agent: agent.policy.prior == "none",
        "agent.policy.prior is 'none': there is nothing to be close to",
        "policy.kl_gate",
        "policy.kl_dim_power",
        "policy.kl_scale",
        "policy.divergence",
        "policy.value_weight",
        "policy.prior_std_min",
        "policy.prior_std_from",
        "policy.seed_record",
        "mppi.record",
    ),
    _agent(
        lambda agent: agent.policy.kl_coef == 0.0,
        "agent.policy.kl_coef is 0: the divergence weighs nothing",
        "policy.kl_gate",
        "policy.kl_dim_power",
        "policy.kl_scale",
        "policy.divergence",
        "policy.value_weight",
    ),
    _agent(
        lambda agent: not agent.policy.learns_prior,
        "agent.policy.prior is neither 'learned' nor 'mixture': no prior is fitted",
        "prior.divergence",
        "prior.weight",
    ),
    _agent(
        lambda agent: agent.prior.weight != "recent" or not agent.policy.learns_prior,
        "agent.prior.weight is not 'recent', or no prior is fitted",
        "prior.half_life",
    ),
    _agent(
        lambda agent: agent.prior.weight != "advantage" or not agent.policy.learns_prior,
        "agent.prior.weight is not 'advantage', or no prior is fitted",
        "prior.advantage_temperature",
    ),
    _agent(
        lambda agent: agent.policy.prior != "mixture",
        "agent.policy.prior is not 'mixture'",
        "policy.prior_mix",
    ),
    _agent(
        lambda agent: agent.policy.kl_tuning != "dual",
        "agent.policy.kl_tuning is not 'dual'",
        "policy.kl_target",
    ),
    _agent(
        lambda agent: agent.policy.kl_tuning != "calibrated",
        "agent.policy.kl_tuning is not 'calibrated'",
        "policy.bias_limit",
        "policy.bias_steps",
    ),
    _agent(
        lambda agent: agent.policy.kl_tuning == "fixed",
        "agent.policy.kl_tuning is 'fixed'",
        "policy.dual_rate",
    ),
    _agent(
        lambda agent: agent.policy.dual_rate == 0.0,
        "agent.policy.dual_rate is 0: the factor never changes",
        "policy.kl_tuning",
        "policy.kl_target",
        "policy.bias_limit",
        "policy.bias_steps",
        "prior.gate_tolerance",
    ),
    Rule(
        lambda config: (
            config.agent.policy.kl_tuning == "calibrated"
            and config.train.updates_per_decision == 0
            # Otherwise updates before the first decision may see the outcomes of plans.
            and not (
                config.train.pretrain_updates
                and (config.train.buffer or config.train.seed_actions != "random")
            )
        ),
        "train.updates_per_decision is 0: nothing is learned after the first plan",
        (
            "agent.policy.kl_tuning",
            "agent.policy.bias_limit",
            "agent.policy.bias_steps",
            "agent.prior.gate_tolerance",
        ),
    ),
    _agent(
        lambda agent: not agent.policy.value_weight,
        "agent.policy.value_weight is False",
        "policy.value_weight_temperature",
    ),
    _agent(
        lambda agent: agent.policy.seed_record != "action" or agent.policy.prior == "none",
        "agent.policy.seed_record is not 'action', or there is no prior",
        "policy.seed_std",
    ),
    Rule(
        lambda config: not config.train.buffer,
        "train.buffer is empty",
        ("agent.policy.data_record", "agent.policy.data_std"),
    ),
    _agent(
        lambda agent: agent.policy.data_record != "action" or agent.policy.prior == "none",
        "agent.policy.data_record is not 'action', or there is no prior",
        "policy.data_std",
    ),
    _agent(
        lambda agent: agent.policy.entropy_coef == 0.0,
        "agent.policy.entropy_coef is 0",
        "policy.entropy",
        "policy.entropy_dim_power",
    ),
    _agent(
        lambda agent: agent.policy.q_source == "none",
        "agent.policy.q_source is 'none': the loss has no value term",
        "policy.q_reduce",
        "policy.kl_gate",
    ),
    _agent(
        lambda agent: (
            not agent.prior.gate
            and (agent.prior.weight != "advantage" or not agent.policy.learns_prior)
        ),
        "agent.prior.gate is False and no prior is fitted with agent.prior.weight 'advantage'",
        "prior.gate_value",
    ),
    _agent(
        lambda agent: not agent.prior.gate or agent.policy.kl_tuning != "calibrated",
        "agent.prior.gate is False or agent.policy.kl_tuning is not 'calibrated'",
        "prior.gate_tolerance",
    ),
    _agent(
        lambda agent: agent.mppi.temperature == 0.0,
        "agent.mppi.temperature is 0: all elites weigh the same",
        "mppi.temperature_scale",
    ),
    _agent(
        # One knot is a constant action, and two are joined by a line in either case.
        lambda agent: agent.mppi.knots < 3,
        "agent.mppi.knots is less than 3: there is no curve",
        "mppi.interpolation",
    ),
    _agent(
        lambda agent: agent.window == 1,
        "agent.mppi.horizon is 1: windows have a single reward",
        "critic.td_lambda",
    ),
    _agent(
        lambda agent: agent.critic.td_lambda == 0.0,
        "agent.critic.td_lambda is 0: targets have a single reward",
        "critic.return_steps",
    ),
    _agent(
        lambda agent: not agent.critic.soft_target,
        "agent.critic.soft_target is False",
        "critic.soft_target_clip",
    ),
    _agent(
        lambda agent: not agent.world_model.termination,
        "agent.world_model.termination is False",
        "optimizer.termination_coef",
    ),
    _agent(
        lambda agent: agent.replan.interval == 0,
        "agent.replan.interval is 0: nothing is re-planned",
        "replan.num_samples",
        "replan.iterations",
        "replan.proposal_log_std_min",
        "replan.proposal_log_std_max",
    ),
    _agent(
        # A smaller batch requires a smaller replan.batch_size, also without re-planning.
        lambda agent: agent.replan.interval == 0 and agent.optimizer.batch_size >= 20,
        "agent.replan.interval is 0: nothing is re-planned",
        "replan.batch_size",
    ),
    Rule(
        lambda config: config.train.on_broken_seed != "reset",
        "train.on_broken_seed is not 'reset'",
        ("train.max_seed_resets",),
    ),
    Rule(
        lambda config: config.train.pretrain_updates == 0,
        "train.pretrain_updates is 0",
        ("agent.policy.train_in_pretraining",),
    ),
)


def without_effect(*configs: Config) -> list[str]:
    """One line for every field that differs from its default and has no effect.

    Floats must be plain numbers. Several configurations, the cells of a sweep, yield one line per
    field whatever its values.
    """
    # Only changed fields: nobody asked for a default.
    defaults = config_lib.flatten(Config())
    lines: dict[str, str] = {}
    for config in configs:
        chosen = config_lib.flatten(config)
        for rule in RULES:
            for name in rule.fields if rule.idle(config) else ():
                if chosen[name] != defaults[name]:
                    line = f"{name} = {values.shown(chosen[name])}: has no effect, {rule.why}"
                    lines.setdefault(name, line)
    return list(lines.values())
