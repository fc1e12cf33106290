"""Rules between fields, a small function each; nothing here compiles or allocates.

Ranges and choices of a single field are declared with it (:mod:`pomcp_jax.config`). A rule takes
a configuration and returns None, or one line that names a field, its value and what would work.
"""

import math
import os
from collections.abc import Callable

from pomcp_jax import config as config_lib
from pomcp_jax import fields, mppi, schedule
from pomcp_jax.config import AgentConfig, Config, ConfigError

AgentRule = Callable[[AgentConfig], str | None]
RunRule = Callable[[Config], str | None]

LEARNED = "agent.policy.prior is 'learned' or 'mixture'"


def _wrong(group: object, name: str, wanted: str) -> str:
    """Error message about the field ``name`` of the configuration ``group``."""
    return f"{name} = {getattr(group, name.rpartition('.')[2])!r}: must be {wanted}"


def simnorm_groups_fill_the_latent(agent: AgentConfig) -> str | None:
    """The latent state is a whole number of SimNorm groups."""
    model = agent.world_model
    if model.latent_size % model.simnorm_group == 0:
        return None
    group = f"agent.world_model.simnorm_group = {model.simnorm_group}"
    return _wrong(model, "agent.world_model.latent_size", f"a multiple of {group}")


def bins_span_an_interval(agent: AgentConfig) -> str | None:
    """The highest bin lies above the lowest."""
    model = agent.world_model
    if model.bin_high > model.bin_low:
        return None
    return _wrong(
        model, "agent.world_model.bin_high", f"> agent.world_model.bin_low = {model.bin_low}"
    )


def log_std_bounds_are_ordered(agent: AgentConfig) -> str | None:
    """The policy's upper bound lies above its lower bound."""
    model = agent.world_model
    if model.log_std_max > model.log_std_min:
        return None
    low = f"agent.world_model.log_std_min = {model.log_std_min}"
    return _wrong(model, "agent.world_model.log_std_max", f"> {low}")


def proposal_log_std_bounds_are_ordered(agent: AgentConfig) -> str | None:
    """The same for proposals when re-planning."""
    replan = agent.replan
    if replan.proposal_log_std_max > replan.proposal_log_std_min:
        return None
    low = f"agent.replan.proposal_log_std_min = {replan.proposal_log_std_min}"
    return _wrong(replan, "agent.replan.proposal_log_std_max", f"> {low}")


def target_heads_exist(agent: AgentConfig) -> str | None:
    """A target uses heads that the ensemble has."""
    heads = agent.world_model.num_heads
    if agent.critic.num_target_heads <= heads:
        return None
    return _wrong(
        agent.critic,
        "agent.critic.num_target_heads",
        f"<= agent.world_model.num_heads = {heads}",
    )


def policy_heads_exist(agent: AgentConfig) -> str | None:
    """The policy loss uses heads that the ensemble has."""
    heads = agent.world_model.num_heads
    if agent.policy.num_q_heads <= heads:
        return None
    return _wrong(
        agent.policy, "agent.policy.num_q_heads", f"<= agent.world_model.num_heads = {heads}"
    )


def replanning_has_candidates(agent: AgentConfig) -> str | None:
    """Proposals and elites fit into the candidates of a re-planning."""
    samples = agent.replan.num_samples
    # At least one candidate is drawn at random: proposals alone would not search.
    fewest = max(agent.mppi.num_proposals + 1, agent.mppi.num_elites)
    if samples == 0 or samples >= fewest:
        return None
    return _wrong(
        agent.replan,
        "agent.replan.num_samples",
        f"0 (as many as acting) or >= {fewest}, because of agent.mppi.num_proposals and"
        " agent.mppi.num_elites",
    )


def replanned_windows_are_of_the_batch(agent: AgentConfig) -> str | None:
    """Re-planned windows are a part of the sampled batch."""
    batch = agent.optimizer.batch_size
    if agent.replan.batch_size <= batch:
        return None
    return _wrong(
        agent.replan, "agent.replan.batch_size", f"<= agent.optimizer.batch_size = {batch}"
    )


def plans_use_the_whole_box(agent: AgentConfig) -> str | None:
    """Plans have the bounds of the policy and of random actions."""
    # Not numbers but arrays or tracers: bounds per input, which only the planner alone has.
    for name, wanted in (("low", -1.0), ("high", 1.0)):
        if fields.is_on(agent.mppi, name):
            why = f"{wanted:g} in training, whose actions an environment scales to its own bounds"
            return _wrong(agent.mppi, f"agent.mppi.{name}", why)
    return None


def value_term_fits_the_critic(agent: AgentConfig) -> str | None:
    """Q and V critics each have their own source of the value term."""
    critic = agent.world_model.critic
    sources = _value_sources(agent)
    if agent.policy.q_source in sources:
        return None
    allowed = " or ".join(map(repr, sources))
    return _wrong(
        agent.policy,
        "agent.policy.q_source",
        f"{allowed} when agent.world_model.critic is {critic!r}",
    )


def _value_sources(agent: AgentConfig) -> tuple[str, str]:
    # A Q critic needs no model to value an action; a V critic cannot value one without it.
    return {"q": ("critic", "none"), "v": ("model", "none")}[agent.world_model.critic]


def no_weight_without_a_value_term(agent: AgentConfig) -> str | None:
    """A value term needs a source to have a weight."""
    if agent.policy.q_source != "none" or agent.policy.q_coef == 0.0:
        return None
    source = _value_sources(agent)[0]
    return _wrong(
        agent.policy,
        "agent.policy.q_coef",
        f"0 when agent.policy.q_source is 'none' (or make that {source!r})",
    )


def policy_learns_from_something(agent: AgentConfig) -> str | None:
    """There is a prior or a value term."""
    if agent.policy.prior != "none" or agent.policy.q_source != "none":
        return None
    return _wrong(
        agent.policy,
        "agent.policy.prior",
        "a prior when agent.policy.q_source is 'none': there is nothing else to learn from",
    )


def no_weight_without_a_prior(agent: AgentConfig) -> str | None:
    """A divergence needs a prior to have a weight."""
    if agent.policy.prior != "none" or agent.policy.kl_coef == 0.0:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_coef",
        "0 when agent.policy.prior is 'none' (or make that 'learned')",
    )


def imitation_has_weight(agent: AgentConfig) -> str | None:
    """Without a value term the divergence needs a weight."""
    if agent.policy.q_source != "none" or agent.policy.kl_coef > 0.0:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_coef",
        "> 0 when agent.policy.q_source is 'none': there is nothing else to learn from",
    )


def value_scale_exists(agent: AgentConfig) -> str | None:
    """Q's spread over the prior's actions needs a prior and a Q."""
    policy = agent.policy
    if policy.q_scale == "states" or (policy.prior != "none" and policy.q_source != "none"):
        return None
    field = "prior" if policy.prior == "none" else "q_source"
    return _wrong(policy, "agent.policy.q_scale", f"'states' when agent.policy.{field} is 'none'")


def tuning_has_a_prior(agent: AgentConfig) -> str | None:
    """The factor tunes the weight of a divergence that exists."""
    if agent.policy.kl_tuning == "fixed" or agent.policy.prior != "none":
        return None
    return _wrong(
        agent.policy, "agent.policy.kl_tuning", "'fixed' when agent.policy.prior is 'none'"
    )


def tuning_has_a_weight(agent: AgentConfig) -> str | None:
    """The factor multiplies a weight that is not zero."""
    tuning = agent.policy.kl_tuning
    if tuning == "fixed" or agent.policy.kl_coef > 0.0:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_coef",
        f"> 0 when agent.policy.kl_tuning is {tuning!r}: that multiplies it",
    )


def tuning_has_a_kl(agent: AgentConfig) -> str | None:
    """The dual factor aims at a KL, which not every divergence is."""
    divergence = agent.policy.divergence
    if agent.policy.kl_tuning != "dual" or divergence in ("reverse", "forward"):
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_tuning",
        f"'fixed' or 'calibrated' when agent.policy.divergence is {divergence!r}:"
        " agent.policy.kl_target is a KL",
    )


def bias_is_of_returns(agent: AgentConfig) -> str | None:
    """Returns without the price of the divergence are no measure of values with it."""
    if agent.policy.kl_tuning != "calibrated" or not agent.critic.soft_target:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_tuning",
        "'fixed' or 'dual' when agent.critic.soft_target is True: values include the divergence",
    )


def proposer_exists(agent: AgentConfig) -> str | None:
    """Only a learned prior can propose plans."""
    if agent.policy.proposer == "policy" or agent.policy.learns_prior:
        return None
    return _wrong(agent.policy, "agent.policy.proposer", f"'policy' unless {LEARNED}")


def proposers_have_proposals(agent: AgentConfig) -> str | None:
    """Every proposer makes at least one proposal."""
    proposals = agent.mppi.num_proposals
    if proposals >= {"policy": 0, "prior": 1, "both": 2}[agent.policy.proposer]:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.proposer",
        f"'policy' when agent.mppi.num_proposals is {proposals}",
    )


def tail_has_an_action(agent: AgentConfig) -> str | None:
    """The value of a V critic at a plan's end takes no action."""
    if agent.critic.tail_action == "sample" or agent.world_model.critic == "q":
        return None
    return _wrong(
        agent.critic,
        "agent.critic.tail_action",
        "'sample' when agent.world_model.critic is 'v': V has no action",
    )


def tail_penalty_has_heads(agent: AgentConfig) -> str | None:
    """A standard deviation needs at least two heads."""
    # The draw takes all heads if the ensemble has fewer.
    heads = min(agent.critic.num_tail_heads, agent.world_model.num_heads)
    if agent.critic.tail_penalty == 0.0 or heads > 1:
        return None
    return _wrong(
        agent.critic,
        "agent.critic.tail_penalty",
        "0 when agent.critic.num_tail_heads or agent.world_model.num_heads is 1: one head has no"
        " spread (or make that 2)",
    )


def gate_compares_actions(agent: AgentConfig) -> str | None:
    """Only a Q critic values a record's action."""
    if agent.prior.gate_value != "critic" or agent.world_model.critic == "q":
        return None
    return _wrong(
        agent.prior,
        "agent.prior.gate_value",
        "'plan' when agent.world_model.critic is 'v': V has no action",
    )


def gate_has_a_learned_prior(agent: AgentConfig) -> str | None:
    """Only a prior that is fitted can be fitted selectively."""
    if not agent.prior.gate or agent.policy.learns_prior:
        return None
    return _wrong(agent.prior, "agent.prior.gate", f"False unless {LEARNED}")


def priors_have_spread(agent: AgentConfig) -> str | None:
    """A record without spread is a point, from which divergences are infinite."""
    # ``best_elite`` adds 1e-6 to the variance, so its std never is 0.
    spread = agent.mppi.std_min > 0 or agent.mppi.record == "best_elite"
    if agent.policy.prior == "none" or spread or agent.policy.prior_std_min > 0.0:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.prior_std_min",
        "> 0 when agent.mppi.std_min is 0: a record without spread is a point, and a divergence"
        " from it infinite (or make that 0.05)",
    )


def replanned_prior_is_replanned(agent: AgentConfig) -> str | None:
    """The prior ``replanned`` needs re-planning."""
    if agent.policy.prior != "replanned" or agent.replan.interval >= 1:
        return None
    return _wrong(
        agent.replan,
        "agent.replan.interval",
        ">= 1 because agent.policy.prior is 'replanned' (or make that 'stored')",
    )


def replanning_has_a_reader(agent: AgentConfig) -> str | None:
    """Records are kept fresh for a prior only."""
    if agent.policy.prior != "none" or agent.replan.interval == 0:
        return None
    return _wrong(
        agent.replan,
        "agent.replan.interval",
        "0 when agent.policy.prior is 'none': nothing reads the new records",
    )


def selection_has_replanning(agent: AgentConfig) -> str | None:
    """Windows are selected for re-planning only."""
    if agent.replan.select == "first" or agent.replan.interval >= 1:
        return None
    return _wrong(
        agent.replan,
        "agent.replan.select",
        "'first' when agent.replan.interval is 0 (or make that 10)",
    )


def selection_compares_like_with_like(agent: AgentConfig) -> str | None:
    """A policy before its tanh has no KL to a record of actions."""
    if agent.replan.select != "kl" or agent.world_model.squash != "tanh":
        return None
    return _wrong(
        agent.replan,
        "agent.replan.select",
        "'first' or 'oldest' when agent.world_model.squash is 'tanh': records are Gaussians over"
        " actions",
    )


def target_actor_exists(agent: AgentConfig) -> str | None:
    """Only a learned prior can act in a target."""
    if agent.critic.target_actor != "prior" or agent.policy.learns_prior:
        return None
    return _wrong(agent.critic, "agent.critic.target_actor", f"'policy' unless {LEARNED}")


def target_values_plans(agent: AgentConfig) -> str | None:
    """Only a Q critic values the action of a stored plan."""
    if agent.critic.target_actor not in ("stored", "best") or agent.world_model.critic == "q":
        return None
    return _wrong(
        agent.critic,
        "agent.critic.target_actor",
        "'policy' when agent.world_model.critic is 'v': V has no action",
    )


def long_returns_have_rewards(agent: AgentConfig) -> str | None:
    """Targets of a V critic are made in the model, not from the window's rewards."""
    if agent.critic.td_lambda == 0.0 or agent.world_model.critic == "q":
        return None
    return _wrong(
        agent.critic,
        "agent.critic.td_lambda",
        "0 when agent.world_model.critic is 'v': its targets are one step of the model",
    )


def long_returns_contain_the_unrolling(agent: AgentConfig) -> str | None:
    """Every step that the model is unrolled over has a target."""
    steps, name = agent.critic.return_steps, "agent.critic.return_steps"
    if steps and agent.world_model.critic == "v":
        return _wrong(
            agent.critic,
            name,
            "0 when agent.world_model.critic is 'v': its targets are one step of the model",
        )
    if steps == 0 or steps >= agent.mppi.horizon:
        return None
    return _wrong(agent.critic, name, f"0, or >= agent.mppi.horizon = {agent.mppi.horizon}")


def soft_target_has_prior_and_q(agent: AgentConfig) -> str | None:
    """Soft targets need a Q critic, and a prior at next states, which only a network has."""
    if not agent.critic.soft_target:
        return None
    if agent.policy.learns_prior and agent.world_model.critic == "q":
        return None
    return _wrong(
        agent.critic,
        "agent.critic.soft_target",
        f"False unless {LEARNED} and agent.world_model.critic is 'q'",
    )


def soft_target_is_of_the_loss(agent: AgentConfig) -> str | None:
    """What a target charges is what the policy's loss charges."""
    policy = agent.policy
    same = (
        policy.prior == "learned",
        policy.prior_std_from == "prior",
        policy.divergence == "reverse",
        policy.q_coef > 0.0,
        agent.critic.target_actor == "policy",
    )
    if not agent.critic.soft_target or all(same):
        return None
    return _wrong(
        agent.critic,
        "agent.critic.soft_target",
        "False unless agent.policy has prior 'learned', prior_std_from 'prior', divergence"
        " 'reverse' and q_coef > 0, and agent.critic.target_actor is 'policy'",
    )


def value_weight_has_values(agent: AgentConfig) -> str | None:
    """Examples are weighted by the value term."""
    if not agent.policy.value_weight or agent.policy.q_source != "none":
        return None
    return _wrong(
        agent.policy, "agent.policy.value_weight", "False when agent.policy.q_source is 'none'"
    )


def value_weight_is_of_states(agent: AgentConfig) -> str | None:
    """Weights compare states, whose values differ by far more than those of one state's actions."""
    if not agent.policy.value_weight or agent.policy.q_scale != "prior":
        return None
    return _wrong(
        agent.policy, "agent.policy.q_scale", "'states' when agent.policy.value_weight is True"
    )


def divergence_compares_like_with_like(agent: AgentConfig) -> str | None:
    """A policy before its tanh has no KL to a record of actions."""
    policy = agent.policy
    is_record = policy.prior in ("stored", "replanned")
    if agent.world_model.squash != "tanh" or not is_record or policy.divergence == "cross_entropy":
        return None
    return _wrong(
        policy,
        "agent.policy.divergence",
        "'cross_entropy' when agent.world_model.squash is 'tanh' and the prior is a record of"
        " actions: the other divergences compare densities of different spaces",
    )


def learned_prior_fits_records(agent: AgentConfig) -> str | None:
    """A learned prior is fitted to records of actions, so it is a Gaussian over actions."""
    if agent.world_model.squash != "tanh" or not agent.policy.learns_prior:
        return None
    return _wrong(
        agent.world_model,
        "agent.world_model.squash",
        f"'clip' or 'clip_straight_through' when agent.policy.prior is {agent.policy.prior!r}:"
        " records are Gaussians over actions",
    )


AGENT_RULES: tuple[AgentRule, ...] = (
    simnorm_groups_fill_the_latent,
    bins_span_an_interval,
    log_std_bounds_are_ordered,
    target_heads_exist,
    policy_heads_exist,
    replanning_has_candidates,
    replanned_windows_are_of_the_batch,
    proposal_log_std_bounds_are_ordered,
    plans_use_the_whole_box,
    value_term_fits_the_critic,
    no_weight_without_a_value_term,
    policy_learns_from_something,
    no_weight_without_a_prior,
    imitation_has_weight,
    value_scale_exists,
    tuning_has_a_prior,
    tuning_has_a_weight,
    proposer_exists,
    tuning_has_a_kl,
    bias_is_of_returns,
    proposers_have_proposals,
    tail_has_an_action,
    tail_penalty_has_heads,
    gate_has_a_learned_prior,
    gate_compares_actions,
    priors_have_spread,
    replanned_prior_is_replanned,
    replanning_has_a_reader,
    selection_has_replanning,
    selection_compares_like_with_like,
    target_actor_exists,
    target_values_plans,
    long_returns_have_rewards,
    long_returns_contain_the_unrolling,
    soft_target_has_prior_and_q,
    soft_target_is_of_the_loss,
    value_weight_has_values,
    value_weight_is_of_states,
    divergence_compares_like_with_like,
    learned_prior_fits_records,
)


def seeds_are_int32(config: Config) -> str | None:
    """The last seed's number fits into 32 bits."""
    # Seed k has the key of ``train.seed + k``, computed in int32 on the device.
    if config.train.seed <= 2**31 - 1 - config.train.num_seeds:
        return None
    return _wrong(config.train, "train.seed", "<= 2**31 - 1 - train.num_seeds")


def _window_rows(config: Config) -> int:
    return (config.agent.mppi.horizon + 1) * config.env.num_envs


def random_phase_fills_a_window(config: Config) -> str | None:
    """The first update finds a window of every environment."""
    rows = _window_rows(config)
    # Whether a file has a window of every environment is checked when it is read.
    if config.train.seed_decisions >= rows or config.train.buffer:
        return None
    return _wrong(
        config.train,
        "train.seed_decisions",
        f">= (agent.mppi.horizon + 1) x env.num_envs = {rows}:"
        " the first update needs a window of every environment (or train.buffer names a file)",
    )


def run_outlasts_the_random_phase(config: Config) -> str | None:
    """Some decisions are left to train in."""
    first = config.train.seed_decisions
    if config.train.total_decisions > first:
        return None
    return _wrong(config.train, "train.total_decisions", f"> train.seed_decisions = {first}")


def replay_feeds_a_batch(config: Config) -> str | None:
    """Replay can store a batch and a window of every environment."""
    agent = config.agent
    # A smaller replay would repeat transitions within most batches.
    rows = max(_window_rows(config), agent.optimizer.batch_size * agent.mppi.horizon)
    if config.train.capacity >= rows:
        return None
    return _wrong(
        config.train,
        "train.capacity",
        f">= {rows} (agent.optimizer.batch_size x agent.mppi.horizon, and"
        " a window of every environment)",
    )


def _longer_than_replay(config: Config, group: object, name: str) -> str | None:
    rows = config.train.capacity // config.env.num_envs
    if getattr(group, name.rpartition(".")[2]) < rows:
        return None
    hint = f"< {rows}, the rows of one environment (train.capacity / env.num_envs)"
    return _wrong(group, name, hint)


def outcomes_are_in_replay(config: Config) -> str | None:
    """Replay has as many rewards in a row as a value is compared with."""
    if config.agent.policy.kl_tuning != "calibrated":
        return None
    return _longer_than_replay(config, config.agent.policy, "agent.policy.bias_steps")


def returns_are_in_replay(config: Config) -> str | None:
    """Replay has as many rewards in a row as a return."""
    if config.agent.critic.td_lambda == 0.0:
        return None
    return _longer_than_replay(config, config.agent.critic, "agent.critic.return_steps")


def plans_are_of_their_actions(config: Config) -> str | None:
    """A record that was planned later hides that the action was random."""
    agent = config.agent
    if agent.policy.kl_tuning != "calibrated" or agent.replan.interval == 0:
        return None
    return _wrong(
        agent.policy,
        "agent.policy.kl_tuning",
        "'fixed' or 'dual' when agent.replan.interval > 0: whose actions were plans is not known",
    )


def last_values_are_of_targets(config: Config) -> str | None:
    """The critic's own value at the end of an outcome is of the action that targets evaluate."""
    agent = config.agent
    actor = agent.critic.target_actor
    if agent.policy.kl_tuning != "calibrated" or actor in ("policy", "prior"):
        return None
    return _wrong(
        agent.critic,
        "agent.critic.target_actor",
        "'policy' or 'prior' when agent.policy.kl_tuning is 'calibrated':"
        " the last states of outcomes have no plan",
    )


def plans_are_worth_what_critics_say(config: Config) -> str | None:
    """Plans' values with costs and penalties are not to be compared with values without them."""
    agent = config.agent
    reads = agent.prior.gate or (agent.prior.weight == "advantage" and agent.policy.learns_prior)
    if not reads or agent.prior.gate_value != "plan":
        return None
    costs = {
        "critic.tail_penalty": agent.critic.tail_penalty,
        "mppi.action_rate_cost": agent.mppi.action_rate_cost,
    }
    name = next((name for name, cost in costs.items() if cost), None)
    if name is None:
        return None
    return _wrong(
        agent.prior,
        "agent.prior.gate_value",
        f"'critic' when agent.{name} > 0 (or make that 0): it lowers values of plans",
    )


def outcomes_are_of_the_agent(config: Config) -> str | None:
    """Without acting there are no recent plans of this agent whose outcome is known."""
    if config.agent.policy.kl_tuning != "calibrated" or not config.train.offline:
        return None
    return _wrong(
        config.agent.policy,
        "agent.policy.kl_tuning",
        "'fixed' or 'dual' when train.offline is True: the agent does not act",
    )


def offline_runs_learn(config: Config) -> str | None:
    """A run that does not act has nothing to do but updates."""
    if not config.train.offline or config.train.updates_per_decision > 0:
        return None
    return _wrong(config.train, "train.updates_per_decision", "> 0 when train.offline is True")


def buffer_is_a_file_of_arrays(config: Config) -> str | None:
    """A name that can only be a mistake is refused before the environment is built."""
    if config.train.buffer.endswith(".npz") or not config.train.buffer:
        return None
    return f"train.buffer = {config.train.buffer!r:.200}: must be an .npz file, or empty"


def devices_of_a_seed_divide_its_rows(config: Config) -> str | None:
    """Every device of a seed has as many environments and windows as the others."""
    agent, devices = config.agent, config.train.devices_per_seed
    multiple = f"a multiple of train.devices_per_seed = {devices}"
    if config.env.num_envs % devices:
        return _wrong(config.env, "env.num_envs", multiple)
    if agent.optimizer.batch_size % devices:
        return _wrong(agent.optimizer, "agent.optimizer.batch_size", multiple)
    # Plans of a batch that cannot be shared would be made by every device, all of them.
    states = agent.mppi.horizon * agent.replan.batch_size
    if agent.replan.interval and states % devices:
        product = f"such that times agent.mppi.horizon = {agent.mppi.horizon} it is {multiple}"
        return _wrong(agent.replan, "agent.replan.batch_size", product)
    return None


def physics_of_a_seed_is_on_its_devices(config: Config) -> str | None:
    """The cores of the host are one resource, whatever the number of devices."""
    if config.train.devices_per_seed == 1 or config.env.backend != "host":
        return None
    return _wrong(config.train, "train.devices_per_seed", "1 when env.backend is 'host'")


# Those of an agent alone are here where acting does not need them: older agents can be read.
RUN_RULES: tuple[RunRule, ...] = (
    devices_of_a_seed_divide_its_rows,
    physics_of_a_seed_is_on_its_devices,
    seeds_are_int32,
    random_phase_fills_a_window,
    run_outlasts_the_random_phase,
    replay_feeds_a_batch,
    outcomes_are_in_replay,
    returns_are_in_replay,
    outcomes_are_of_the_agent,
    plans_are_of_their_actions,
    last_values_are_of_targets,
    plans_are_worth_what_critics_say,
    offline_runs_learn,
    buffer_is_a_file_of_arrays,
)


def validate_agent(config: AgentConfig) -> None:
    """Check every value of an agent's configuration, then the rules between fields.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    # Values first: rules divide by fields and index by choices.
    config_lib.check(config, "agent")
    _apply_agent_rules(config)


def _apply_agent_rules(config: AgentConfig) -> None:
    mppi.validate(config.mppi, "agent.mppi")
    for rule in AGENT_RULES:
        if message := rule(config):
            raise ConfigError(message)


def validate_run(config: Config) -> None:
    """Check a whole run, for an environment of any name and sizes.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    config_lib.check(config)
    _apply_agent_rules(config.agent)
    for rule in RUN_RULES:
        if message := rule(config):
            raise ConfigError(message)
    schedule.check(config)


def validate_config(config: Config) -> None:
    """Check a whole run, and that its task has a known name and the files that it reads.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    # Imported here: environments load MuJoCo, which validating an agent does not need.
    from pomcp_jax import envs

    try:
        envs.check_name(config.env.task)
    except ConfigError:  # names the field already
        raise
    except (ValueError, ImportError) as error:
        raise ConfigError(f"env.task = {config.env.task!r}: {error}") from None
    try:
        envs.check_backend(config.env.task, config.env.backend)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"env.backend = {config.env.backend!r}: {error}") from None
    try:
        envs.check_workers(config.env.task, config.env.workers)
    except ValueError as error:
        raise ConfigError(f"env.workers = {config.env.workers}: {error}") from None
    start = config.train.start_from
    if start and not os.path.isdir(os.path.expanduser(start)):
        raise ConfigError(
            f"train.start_from = {start!r:.200}: must be the folder of a trained agent, or empty"
        )
    try:
        envs.check_assets(config.env.task, config.env.assets)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"env.task = {config.env.task!r}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"env.assets = {config.env.assets!r}: {error}") from None
    validate_run(config)


def validate_memory(config: Config, replay_bytes: int) -> None:
    """Refuse a replay beyond the stated limit.

    Raises:
      ConfigError: with the capacity that would fit.
    """
    limit = config.train.memory_limit_gb * 1e9
    if replay_bytes > limit:
        # Rounded down, so that the suggestion itself is accepted.
        fits = math.floor(config.train.capacity * limit / replay_bytes)
        raise ConfigError(
            f"train.capacity = {config.train.capacity}: needs {replay_bytes / 1e9:.3g} GB for"
            f" {config.train.num_seeds} seed(s); must be <= {fits} to stay below"
            f" train.memory_limit_gb = {config.train.memory_limit_gb:g}"
        )
