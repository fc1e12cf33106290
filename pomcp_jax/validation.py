"""Checks of a configuration that span rooms; nothing here compiles or allocates."""

from pomcp_jax import mppi, world_model
from pomcp_jax.config import AgentConfig, ConfigError


def validate_agent(config: AgentConfig, path: str = "agent") -> None:
    """Check every group and what must agree between groups.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    world_model.validate(config.world_model, f"{path}.world_model")
    mppi.validate(config.mppi, f"{path}.mppi")
    policy, critic, model = config.policy, config.critic, config.world_model
    choices = (
        ("critic.target_reduce", ("min", "mean")),
        ("critic.target_actor", ("policy", "prior")),
        ("policy.entropy", ("gaussian", "squashed")),
        ("policy.prior", ("none", "stored", "replanned", "learned")),
        ("policy.divergence", ("reverse", "forward", "cross_entropy", "nll")),
        ("policy.kl_scale", ("own", "q", "none")),
        ("policy.prior_std_from", ("prior", "policy")),
        ("policy.q_reduce", ("min", "mean")),
        ("prior.divergence", ("reverse", "forward")),
    )
    for name, valid in choices:
        group, field = name.split(".")
        value = getattr(getattr(config, group), field)
        if value not in valid:
            raise ConfigError(f"{path}.{name} = {value!r}: must be one of {', '.join(valid)}")
    heads = model.num_heads
    opt = config.optimizer
    rules = (
        ("critic.num_target_heads", 1 <= critic.num_target_heads <= heads, f"in [1, {heads}]"),
        ("policy.num_q_heads", 1 <= policy.num_q_heads <= heads, f"in [1, {heads}]"),
        ("optimizer.batch_size", opt.batch_size >= 1, ">= 1"),
        ("optimizer.discount", 0.0 <= opt.discount <= 1.0, "in [0, 1]"),
        ("optimizer.rho", opt.rho > 0.0, "> 0"),
        ("optimizer.target_rate", 0.0 < opt.target_rate <= 1.0, "in (0, 1]"),
        ("optimizer.learning_rate", opt.learning_rate >= 0.0, ">= 0"),
        ("optimizer.grad_clip", opt.grad_clip > 0.0, "> 0"),
        ("replan.interval", config.replan.interval >= 0, ">= 0 (0 is off)"),
        (
            "replan.batch_size",
            1 <= config.replan.batch_size <= opt.batch_size,
            f"in [1, {path}.optimizer.batch_size = {opt.batch_size}]",
        ),
        (
            "replan.interval",
            policy.prior != "replanned" or config.replan.interval >= 1,
            f">= 1 because {path}.policy.prior is 'replanned' (or make that 'stored')",
        ),
        (
            "critic.target_actor",
            critic.target_actor != "prior" or policy.prior == "learned",
            f"'policy' unless {path}.policy.prior is 'learned'",
        ),
        (
            "critic.soft_target",
            not critic.soft_target or (policy.prior == "learned" and model.critic == "q"),
            f"False unless {path}.policy.prior is 'learned' and {path}.world_model.critic is 'q'",
        ),
        (
            "policy.value_weight",
            not policy.value_weight or model.critic == "q",
            f"False unless {path}.world_model.critic is 'q'",
        ),
        (
            "policy.prior",
            policy.prior != "none" or model.critic == "q",
            f"a prior when {path}.world_model.critic is 'v': there is nothing else to learn from",
        ),
        (
            "policy.divergence",
            model.squash != "tanh"
            or policy.prior in ("none", "learned")
            or policy.divergence == "cross_entropy",
            f"'cross_entropy' when {path}.world_model.squash is 'tanh' and the prior is a record"
            " of actions: the other divergences compare densities of different spaces",
        ),
        (
            "world_model.squash",
            model.squash != "tanh" or policy.prior != "learned",
            f"'clip' or 'clip_straight_through' when {path}.policy.prior is 'learned':"
            " records are Gaussians over actions",
        ),
    )
    for name, good, hint in rules:
        if not good:
            group, field = name.split(".")
            value = getattr(getattr(config, group), field)
            raise ConfigError(f"{path}.{name} = {value!r}: must be {hint}")
