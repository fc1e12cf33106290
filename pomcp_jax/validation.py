"""Checks of a configuration that span rooms; nothing here compiles or allocates."""

import math

from pomcp_jax import config as config_lib
from pomcp_jax import mppi, ranges, schedule, world_model
from pomcp_jax.config import AgentConfig, Config, ConfigError


def validate_agent(config: AgentConfig, path: str = "agent") -> None:
    """Check every group and what must agree between groups.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    ranges.check(config, "agent")
    world_model.validate(config.world_model, f"{path}.world_model")
    mppi.validate(config.mppi, f"{path}.mppi")
    choices = (
        ("critic.target_reduce", ("min", "mean")),
        ("critic.target_actor", ("policy", "prior")),
        ("policy.entropy", ("gaussian", "squashed")),
        ("policy.prior", ("none", "stored", "replanned", "learned", "mixture")),
        ("policy.q_source", ("critic", "model", "none")),
        ("policy.kl_tuning", ("fixed", "dual")),
        ("policy.proposer", ("policy", "prior", "both")),
        ("policy.seed_record", ("standard", "action")),
        ("replan.select", ("first", "oldest", "kl")),
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
    for name, good, hint in (*_numbers(config, path), *_agreements(config, path)):
        if not good:
            group, field = name.split(".")
            value = getattr(getattr(config, group), field)
            raise ConfigError(f"{path}.{name} = {value!r}: must be {hint}")


Rules = tuple[tuple[str, bool, str], ...]
"""Field, whether it is good, what it must be."""


def _numbers(config: AgentConfig, path: str) -> Rules:
    """Sizes and counts; ranges of floats are in :mod:`pomcp_jax.ranges`."""
    policy, critic, opt, replan = config.policy, config.critic, config.optimizer, config.replan
    heads = config.world_model.num_heads
    fewest = max(config.mppi.num_proposals + 1, config.mppi.num_elites)
    return (
        ("critic.num_target_heads", 1 <= critic.num_target_heads <= heads, f"in [1, {heads}]"),
        ("critic.num_tail_heads", critic.num_tail_heads >= 1, ">= 1"),
        ("policy.num_q_heads", 1 <= policy.num_q_heads <= heads, f"in [1, {heads}]"),
        ("optimizer.batch_size", opt.batch_size >= 1, ">= 1"),
        ("replan.interval", replan.interval >= 0, ">= 0 (0 is off)"),
        ("replan.iterations", replan.iterations >= 0, ">= 0 (0: as many as acting does)"),
        (
            "replan.num_samples",
            replan.num_samples == 0 or replan.num_samples >= fewest,
            f"0 (as many as acting) or >= {fewest}, because of {path}.mppi.num_proposals"
            f" and {path}.mppi.num_elites",
        ),
        (
            "replan.batch_size",
            1 <= replan.batch_size <= opt.batch_size,
            f"in [1, {path}.optimizer.batch_size = {opt.batch_size}]",
        ),
        (
            "replan.proposal_log_std_max",
            replan.proposal_log_std_max > replan.proposal_log_std_min,
            f"> {path}.replan.proposal_log_std_min = {replan.proposal_log_std_min}",
        ),
    )


def _agreements(config: AgentConfig, path: str) -> Rules:
    """What fields ask of each other: settings that contradict each other, by name."""
    policy, critic, model = config.policy, config.critic, config.world_model
    learned, has_prior = policy.learns_prior, policy.prior != "none"
    need_prior = f"{path}.policy.prior is 'learned' or 'mixture'"
    spread = config.mppi.std_min > 0 or config.mppi.record == "best_elite"
    source = {"q": ("critic", "none"), "v": ("model", "none")}[model.critic]
    proposals = config.mppi.num_proposals
    tail_heads = min(critic.num_tail_heads, model.num_heads)
    return (
        (
            "policy.q_source",
            policy.q_source in source,
            f"{' or '.join(map(repr, source))} when {path}.world_model.critic is {model.critic!r}",
        ),
        (
            "policy.q_coef",
            policy.q_source != "none" or policy.q_coef == 0.0,
            f"0 when {path}.policy.q_source is 'none' (or make that {source[0]!r})",
        ),
        (
            "policy.prior",
            has_prior or policy.q_source != "none",
            f"a prior when {path}.policy.q_source is 'none': there is nothing else to learn from",
        ),
        (
            "policy.kl_coef",
            has_prior or policy.kl_coef == 0.0,
            f"0 when {path}.policy.prior is 'none' (or make that 'learned')",
        ),
        (
            "policy.kl_coef",
            policy.q_source != "none" or policy.kl_coef > 0.0,
            f"> 0 when {path}.policy.q_source is 'none': there is nothing else to learn from",
        ),
        (
            "policy.kl_tuning",
            policy.kl_tuning == "fixed" or has_prior,
            f"'fixed' when {path}.policy.prior is 'none'",
        ),
        (
            "policy.kl_coef",
            policy.kl_tuning == "fixed" or policy.kl_coef > 0.0,
            f"> 0 when {path}.policy.kl_tuning is 'dual': that multiplies it",
        ),
        (
            "policy.proposer",
            policy.proposer == "policy" or learned,
            f"'policy' unless {need_prior}",
        ),
        (
            "policy.kl_tuning",
            policy.kl_tuning == "fixed" or policy.divergence in ("reverse", "forward"),
            f"'fixed' when {path}.policy.divergence is {policy.divergence!r}:"
            f" {path}.policy.kl_target is a KL",
        ),
        (
            "policy.proposer",
            proposals >= {"policy": 0, "prior": 1, "both": 2}[policy.proposer],
            f"'policy' when {path}.mppi.num_proposals is {proposals}",
        ),
        (
            "critic.tail_penalty",
            critic.tail_penalty == 0.0 or tail_heads > 1,
            f"0 when {path}.critic.num_tail_heads or {path}.world_model.num_heads is 1: one head"
            " has no spread (or make that 2)",
        ),
        ("prior.gate", not config.prior.gate or learned, f"False unless {need_prior}"),
        (
            "policy.prior_std_min",
            not has_prior or spread or policy.prior_std_min > 0.0,
            f"> 0 when {path}.mppi.std_min is 0: a record without spread is a point, and a"
            " divergence from it infinite (or make that 0.05)",
        ),
        (
            "replan.interval",
            policy.prior != "replanned" or config.replan.interval >= 1,
            f">= 1 because {path}.policy.prior is 'replanned' (or make that 'stored')",
        ),
        (
            "replan.interval",
            has_prior or config.replan.interval == 0,
            f"0 when {path}.policy.prior is 'none': nobody looks at the new records",
        ),
        (
            "replan.select",
            config.replan.select == "first" or config.replan.interval >= 1,
            f"'first' when {path}.replan.interval is 0 (or make that 10)",
        ),
        (
            "replan.select",
            config.replan.select != "kl" or model.squash != "tanh",
            f"'first' or 'oldest' when {path}.world_model.squash is 'tanh': records are Gaussians"
            " over actions",
        ),
        (
            "critic.target_actor",
            critic.target_actor != "prior" or learned,
            f"'policy' unless {need_prior}",
        ),
        (
            "critic.soft_target",
            not critic.soft_target or (learned and model.critic == "q"),
            f"False unless {need_prior} and {path}.world_model.critic is 'q'",
        ),
        (
            "policy.value_weight",
            not policy.value_weight or policy.q_source != "none",
            f"False when {path}.policy.q_source is 'none'",
        ),
        (
            "policy.divergence",
            model.squash != "tanh"
            or policy.prior in ("none", "learned", "mixture")
            or policy.divergence == "cross_entropy",
            f"'cross_entropy' when {path}.world_model.squash is 'tanh' and the prior is a record"
            " of actions: the other divergences compare densities of different spaces",
        ),
        (
            "world_model.squash",
            model.squash != "tanh" or not learned,
            f"'clip' or 'clip_straight_through' when {path}.policy.prior is {policy.prior!r}:"
            " records are Gaussians over actions",
        ),
    )


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
    except (ValueError, ImportError) as error:
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
    ranges.check(config)
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
            ("train.num_devices", train.num_devices >= 0, ">= 0 (0: the most that divide seeds)"),
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
            ("train.checkpoint_keep", train.checkpoint_keep >= 1, ">= 1"),
            ("train.memory_limit_gb", train.memory_limit_gb > 0.0, "> 0"),
            ("train.max_bad_updates", train.max_bad_updates >= 1, ">= 1"),
            (
                "train.on_broken_seed",
                train.on_broken_seed in ("stop", "leave", "reset"),
                "'stop', 'leave' or 'reset'",
            ),
            (
                "train.max_seed_resets",
                train.max_seed_resets >= 1,
                ">= 1 (train.on_broken_seed says 'leave' without any)",
            ),
        ),
    )
    schedule.check(config)


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
