"""Checks of a configuration that span rooms; nothing here compiles or allocates."""

import math

from pomcp_jax import config as config_lib
from pomcp_jax import mppi, world_model
from pomcp_jax.config import AgentConfig, Config, ConfigError


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


def _check(config: Config, rules: tuple[tuple[str, bool, str], ...]) -> None:
    values = config_lib.flatten(config)
    for name, good, hint in rules:
        if not good:
            raise ConfigError(f"{name} = {values[name]!r}: must be {hint}")


def validate_config(config: Config) -> None:
    """Check a whole run and that its task has a known name.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    from pomcp_jax import envs

    try:
        envs.check_name(config.env.task)
    except (ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"env.task = {config.env.task!r}: {error}") from None
    try:
        envs.check_backend(config.env.task, config.env.backend)
    except ValueError as error:
        raise ConfigError(f"env.backend = {config.env.backend!r}: {error}") from None
    validate_run(config)


def validate_run(config: Config) -> None:
    """Check a whole run on an environment that may have any name and any sizes.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    config_lib.check_finite(config)
    _check(
        config,
        (
            ("env.action_repeat", config.env.action_repeat >= 1, ">= 1"),
            ("env.num_envs", config.env.num_envs >= 1, ">= 1"),
        ),
    )
    validate_agent(config.agent)
    train, num_envs = config.train, config.env.num_envs
    window = config.agent.mppi.horizon + 1
    rows = max(window * num_envs, config.agent.optimizer.batch_size * config.agent.mppi.horizon)
    _check(
        config,
        (
            ("train.num_seeds", train.num_seeds >= 1, ">= 1"),
            (
                "train.seed",
                0 <= train.seed <= 2**31 - 1 - train.num_seeds,
                "in [0, 2**31 - 1 - train.num_seeds]",
            ),
            (
                "train.seed_decisions",
                train.seed_decisions >= window * num_envs,
                f">= (agent.mppi.horizon + 1) x env.num_envs = {window * num_envs}:"
                " the first update needs a window of every environment",
            ),
            (
                "train.total_decisions",
                train.total_decisions > train.seed_decisions,
                f"> train.seed_decisions = {train.seed_decisions}",
            ),
            ("train.total_decisions", train.total_decisions < 2**31, "< 2**31"),
            ("train.pretrain_updates", train.pretrain_updates >= 0, ">= 0"),
            (
                "train.updates_per_decision",
                0.0 <= train.updates_per_decision <= 1e3,
                "in [0, 1000]",
            ),
            (
                "train.capacity",
                train.capacity >= rows,
                f">= {rows} (agent.optimizer.batch_size x agent.mppi.horizon, and"
                " a window of every environment)",
            ),
            (
                "train.seed_record",
                train.seed_record in ("standard", "action"),
                "'standard' or 'action'",
            ),
            ("train.chunk_decisions", train.chunk_decisions >= 1, ">= 1"),
            (
                "train.eval_decisions",
                train.eval_decisions >= 0,
                ">= 0 (0 evaluates at the end only)",
            ),
            ("train.eval_episodes", train.eval_episodes >= 1, ">= 1"),
            (
                "train.eval_select",
                train.eval_select in ("sample", "argmax"),
                "'sample' or 'argmax'",
            ),
            (
                "train.checkpoint_decisions",
                train.checkpoint_decisions >= 0,
                ">= 0 (0: at the end only)",
            ),
            ("train.memory_limit_gb", train.memory_limit_gb > 0.0, "> 0"),
            ("train.max_bad_updates", train.max_bad_updates >= 1, ">= 1"),
        ),
    )


def validate_memory(config: Config, replay_bytes: int) -> None:
    """Refuse a replay beyond the stated limit.

    Raises:
      ConfigError: with the capacity that would fit.
    """
    limit = config.train.memory_limit_gb * 1e9
    if replay_bytes > limit:
        fits = math.floor(config.train.capacity * limit / replay_bytes)
        raise ConfigError(
            f"train.capacity = {config.train.capacity}: needs {replay_bytes / 1e9:.3g} GB for"
            f" {config.train.num_seeds} seed(s); must be <= {fits} to stay below"
            f" train.memory_limit_gb = {config.train.memory_limit_gb:g}"
        )
