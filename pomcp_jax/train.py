"""Training as a single loop on the device for all seeds: act, step, insert, update.

The state of a run is one pytree, :class:`TrainState`. Learning state has the
seeds S as its leading axis; counters do not, so that schedules stay scalar
conditions under ``vmap`` (a batched ``lax.cond`` would run both branches).
Floats of ``config.agent`` may have that axis too (:mod:`pomcp_jax.seed_axis`).
Keys are ``fold_in(seed key, counter)``: results do not depend on how a run is
cut into chunks. Environments are stepped as one flat batch of S N.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import (
    acting,
    agent,
    calibration,
    compiled,
    counters,
    data_axis,
    normalising,
    packing,
    replay,
    schedule,
    seed_axis,
    validation,
)
from pomcp_jax.acting import AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.calibration import Outcomes
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.mppi import PlanState
from pomcp_jax.replay import Batch, Index, Row
from pomcp_jax.schedule import Chunks, Ratio, Work, ratio
from pomcp_jax.seed_axis import over_seeds
from pomcp_jax.train_state import (
    ACTING,
    AGENT,
    CALIBRATING,
    ENVIRONMENT,
    EVALUATION,
    SPECS,
    UPDATING,
    TrainState,
    fold_keys,
    init,
    init_agents,
    largest_capacity,
    own_seeds,
    replay_bytes,
    rows_per_env,
)
from pomcp_jax.types import Gaussian, PyTree

__all__ = [
    "ACTING",
    "AGENT",
    "CHUNK_READS",
    "Decision",
    "ENVIRONMENT",
    "EVALUATION",
    "INIT_READS",
    "Program",
    "Ratio",
    "SPECS",
    "TrainState",
    "UPDATING",
    "Work",
    "build",
    "check_environment",
    "chunk",
    "decide",
    "decide_by_policy",
    "decide_randomly",
    "doubts",
    "environment_step",
    "fold_keys",
    "init",
    "init_agents",
    "largest_capacity",
    "ratio",
    "replay_bytes",
    "rows_per_env",
    "update_step",
]

PLAN = "plan/"
"""Prefix of the metrics of acting; all others are of updates."""


def _split_seeds(tree: PyTree, num_seeds: int) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(num_seeds, -1, *x.shape[1:]), tree)


class Decision(NamedTuple):
    """Result of acting, for the environments and replay; leading axes ``[S, N]``."""

    action: Float[Array, "S N A"]
    prior: Gaussian
    value: Float[Array, "S N"]
    plan: PlanState
    metrics: dict[str, Float[Array, " S"]]


def decide(state: TrainState, config: Config, spec: AgentSpec) -> Decision:
    """Plan an action in every environment of every seed."""
    num_seeds = config.train.num_seeds
    timestep = _split_seeds(state.timestep, num_seeds)

    def plan_seed(config, params, key, obs, plan, is_first):
        return acting.act(params, key, obs, plan, is_first, spec=spec, config=config)

    keys = fold_keys(state, ACTING, state.iteration)
    params = agent.with_learners(state.agent).params
    now = data_axis.split((timestep.obs, state.plan, timestep.is_first), 1)
    out = over_seeds(plan_seed, config.agent, params, keys, *now)
    info = out.diagnostics
    metrics = {
        f"{PLAN}{name}": jnp.mean(getattr(info, name).astype(jnp.float32), axis=1)
        for name in info._fields
    }
    return Decision(out.action, out.prior, out.value, out.next_state, metrics)


def decide_randomly(state: TrainState, config: Config, spec: AgentSpec) -> Decision:
    """Uniform actions of the seeding phase, with the record that ``policy.seed_record`` names."""
    shape = (config.env.num_envs, spec.action_size)
    keys = fold_keys(state, ACTING, state.iteration)
    draw = lambda key: jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)  # noqa: E731
    action = jax.vmap(draw)(keys)
    policy = config.agent.policy
    # No planner chose these actions: BMPC stores a standard normal for them, TD-M(PC)^2 and BOOM a
    # wide Gaussian around the action.
    prior = Gaussian(jnp.zeros_like(action), jnp.ones_like(action))
    if policy.seed_record == "action":
        spread = lambda config, x: jnp.full_like(x, config.policy.seed_std)  # noqa: E731
        prior = Gaussian(action, over_seeds(spread, config.agent, action))
    return Decision(action, prior, jnp.zeros(action.shape[:2], action.dtype), state.plan, {})


def decide_by_policy(state: TrainState, config: Config, spec: AgentSpec) -> Decision:
    """Actions of the bare policy in the seeding phase, with its distribution as their record."""

    def act_seed(config, params, key, obs):
        return acting.act_on_record(params, key, obs, spec=spec, config=config)

    obs = _split_seeds(state.timestep, config.train.num_seeds).obs
    keys = fold_keys(state, ACTING, state.iteration)
    params = agent.with_learners(state.agent).params
    action, prior, value = over_seeds(act_seed, config.agent, params, keys, obs)
    return Decision(action, prior, value, state.plan, {})


def environment_step(state: TrainState, decision: Decision, config: Config, env: Env) -> TrainState:
    """Step all environments and insert one row for each."""
    num_seeds = config.train.num_seeds
    flat = decision.action.reshape(-1, decision.action.shape[-1])
    # Flat, because an environment knows nothing of seeds: it steps a batch of S N.
    env_state, following = data_axis.rows(env.step)(state.env, flat)
    before = _split_seeds(state.timestep, num_seeds)
    after = _split_seeds(following, num_seeds)
    row = Row(
        obs=before.obs,
        action=decision.action,
        reward=after.reward,
        terminated=after.terminated,
        # If the next state begins an episode, the environment ignored this action.
        last=after.is_first,
        prior=decision.prior,
        prior_value=decision.value,
        made=jnp.full_like(decision.value, state.updates, jnp.int32),
    )
    insert = jax.vmap(replay.insert, in_axes=(replay.SEEDS, 0), out_axes=replay.SEEDS)
    # Complete rows, so that the ring stays complete everywhere and no window is ever collected.
    row = data_axis.whole(row)
    return state._replace(
        agent=_count_observations(state.agent, row.obs),
        replay=data_axis.whole(insert(state.replay, row)),
        env=env_state,
        timestep=following,
        plan=decision.plan,
        stats=jax.vmap(counters.count)(state.stats, after),
        iteration=state.iteration + 1,
    )


def _count_observations(agents: AgentState, obs: Float[Array, "S N O"]) -> AgentState:
    """``agents`` whose statistics of observations, if they have any, include ``obs``."""
    moments = agents.params.moments
    if moments is None:
        return agents
    counted = jax.vmap(normalising.count)(moments, obs)
    return agents._replace(params=agents.params._replace(moments=counted))


def update_step(
    state: TrainState, config: Config, spec: AgentSpec, work: Work
) -> tuple[TrainState, dict[str, Float[Array, " S"]]]:
    """One update of every seed: sample, re-plan where it is due, learn."""
    length = config.agent.window + 1
    # Sampling, learning and re-planning each have a key, so switching re-planning on changes
    # neither the batches nor the noise of the losses.
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(fold_keys(state, UPDATING, state.updates))
    size = config.agent.optimizer.batch_size
    least = config.agent.mppi.horizon + 1
    draw = lambda ring, key: replay.sample(ring, key, size, length, least)  # noqa: E731
    sample = jax.vmap(draw, in_axes=(replay.SEEDS, 0))
    batch = data_axis.split(sample(state.replay, keys[:, 0]), 2)
    ring = state.replay
    if config.agent.replan.interval:

        def fresh():
            def replan_seed(config, params, key, batch):
                return acting.replan(params, key, batch, spec=spec, config=config)

            learners = agent.with_learners(state.agent).params
            prior, value = over_seeds(replan_seed, config.agent, learners, keys[:, 2], batch)
            return prior, value, jnp.full(value.shape, state.updates, jnp.int32)

        horizon, width = config.agent.mppi.horizon, config.agent.replan.batch_size
        due = (jnp.mod(state.updates, config.agent.replan.interval) == 0) & work.replan
        if config.agent.replan.select != "first":
            batch = _reorder(state, batch, due, config, spec)
        rows = batch.rows
        stored = jax.tree.map(
            lambda x: x[:, :horizon, :width], (rows.prior, rows.prior_value, rows.made)
        )
        # The condition chooses between small arrays only. The ring is written in both cases, mostly
        # with what it already has, because a ring that passes through a condition is copied.
        prior, value, made = jax.lax.cond(due, fresh, lambda: stored)
        # The batch itself gets the new plans, before the losses read it.
        batch, index = jax.vmap(agent.apply_replan)(batch, prior, value, made)
        axes = (replay.SEEDS, 0, 0, 0, 0)
        write = jax.vmap(replay.write_back, in_axes=axes, out_axes=replay.SEEDS)
        ring = write(ring, Index(*index), prior, value, made)

    turn = {"train_actors": work.train_actors, "due": agent.actors_due(state.updates, config.agent)}

    def learn(config, learner, batch, key, seen):
        return agent.update(learner, batch, key, spec=spec, config=config, outcomes=seen, **turn)

    seen = _outcomes(state, config) if config.agent.policy.kl_tuning == "calibrated" else None
    agents, metrics = over_seeds(learn, config.agent, state.agent, batch, keys[:, 1], seen)
    agents, ring = data_axis.whole((agents, ring))
    return state._replace(agent=agents, replay=ring, updates=state.updates + 1), metrics


def _outcomes(state: TrainState, config: Config) -> Outcomes:
    """What followed recent actions of every seed."""

    def of_seed(config, ring, key):
        return calibration.draw(ring, key, config)

    keys = fold_keys(state, CALIBRATING, state.updates)
    axes = (seed_axis.axes(config.agent), replay.SEEDS, 0)
    return jax.vmap(of_seed, in_axes=axes)(config.agent, state.replay, keys)


def _reorder(
    state: TrainState, batch: Batch, due: Bool[Array, ""], config: Config, spec: AgentSpec
) -> Batch:
    """Every seed's batch, with the windows to re-plan first if re-planning is due."""

    def by_urgency():
        def order_seed(config, params, batch):
            return acting.replan_order(params, batch, state.updates, spec=spec, config=config)

        return over_seeds(order_seed, config.agent, agent.with_learners(state.agent).params, batch)

    size = config.agent.optimizer.batch_size
    as_drawn = jnp.broadcast_to(
        jnp.arange(size, dtype=jnp.int32)[None], (config.train.num_seeds, size)
    )
    # The other windows stay in the batch: reordering does not bias what is learned from.
    order = jax.lax.cond(due, by_urgency, lambda: as_drawn)
    return jax.vmap(lambda order, batch: jax.tree.map(lambda x: x[:, order], batch))(order, batch)


def chunk(
    state: TrainState, config: Config, work: Work, *, env: Env, spec: AgentSpec
) -> tuple[TrainState, dict[str, Float[Array, " S"]]]:
    """Do ``work``; returns the state and the mean of every metric over the chunk.

    Trip counts are traced: all phases cost one compilation. Means over no step are 0.
    """
    on_gpu = config.agent.world_model.arranged_for == "gpu"
    join = (lambda metrics: ravel_pytree(metrics)[0]) if on_gpu else (lambda metrics: metrics)
    if on_gpu:
        state = state._replace(agent=packing.pack(state.agent))
    # Nested jits: each is traced once, although ``eval_shape`` asks for the shapes beforehand.
    plan = jax.jit(lambda state, config: decide(state, config, spec))
    improve = jax.jit(lambda state, config, work: update_step(state, config, spec, work))
    # Sums start at zero, with the names and shapes that the two steps return.
    acted = jax.eval_shape(plan, state, config).metrics
    learned = jax.eval_shape(improve, state, config, work)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (acted, learned))

    by_policy = config.train.seed_actions == "policy"
    without_plan = decide_by_policy if by_policy else decide_randomly

    def plan_or_not(state: TrainState) -> Decision:
        def at_random() -> Decision:
            return without_plan(state, config, spec)._replace(metrics=zeros[0])

        # A scalar predicate, outside of every ``vmap``: seeding does not pay for the planner.
        return jax.lax.cond(work.random, at_random, lambda: plan(state, config))

    def act(_, carry):
        state, acted, learned = carry
        decision = plan_or_not(state)
        state = environment_step(state, decision, config, env)
        return state, _add(acted, join(decision.metrics)), learned

    def learn(_, carry):
        state, acted, learned = carry
        state, metrics = improve(state, config, work)
        return state, acted, _add(learned, join(metrics))

    def group(_, carry):
        carry, phase = carry
        # Traced trip counts, hence ``fori_loop``: a ``scan`` would compile once per chunk length.
        carry = jax.lax.fori_loop(0, work.iterations, act, carry)
        carry = (_idle(carry[0], work.idle, config), *carry[1:])
        # Counting remainders as integers is exact; a float ratio would drift over a run.
        phase = phase + work.part
        more = phase >= work.parts
        carry = jax.lax.fori_loop(0, work.updates + more.astype(jnp.int32), learn, carry)
        return carry, jnp.where(more, phase - work.parts, phase)

    before = state.iteration, state.updates
    carry = (state, *map(join, zeros)), jnp.asarray(work.phase, jnp.int32)
    (state, acted, learned), _ = jax.lax.fori_loop(0, work.groups, group, carry)
    acted, learned = (_apart(x, like) for x, like in zip((acted, learned), zeros, strict=True))
    means = _divide(acted, dict.fromkeys(acted, state.iteration - before[0]))
    state = state._replace(agent=packing.unpack(state.agent))
    return state, means | _divide(learned, _counts(learned, before[1], state.updates, config))


def _counts(
    names: Iterable[str], begin: Int[Array, ""], end: Int[Array, ""], config: Config
) -> dict[str, Int[Array, ""]]:
    """How many of the updates ``begin`` to ``end - 1`` each metric is a sum of."""
    due = agent.count_due(begin, end, config.agent)
    return {name: due if name.startswith(agent.ACTOR_METRICS) else end - begin for name in names}


def _idle(state: TrainState, iterations: Array | int, config: Config) -> TrainState:
    """``state`` with its counters advanced as by steps of the environments."""
    passed = jnp.asarray(iterations, jnp.int32)
    decisions = state.stats.decisions + passed * config.env.num_envs
    return state._replace(
        iteration=state.iteration + passed, stats=state.stats._replace(decisions=decisions)
    )


def _apart(total: PyTree, like: PyTree) -> PyTree:
    """``total``, of the structure of ``like`` or joined to one vector, in that structure."""
    return ravel_pytree(like)[1](total) if isinstance(total, jax.Array) else total


def _add(total: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, more)


def _divide(total: dict[str, Array], counts: dict[str, Int[Array, ""]]) -> dict[str, Array]:
    # 0 / 0 would stop a run under ``jax_debug_nans``; the host turns these means into NaN.
    least_one = lambda count: jnp.maximum(count, 1).astype(jnp.float32)  # noqa: E731
    return {name: value / least_one(counts[name]) for name, value in total.items()}


def _nan_means_of_no_steps(
    result: tuple[TrainState, dict[str, Array | np.ndarray]],
    state: TrainState,
    config: Config,
    work: Work,
) -> tuple[TrainState, dict[str, Array | np.ndarray]]:
    """Means over nothing become NaN, on the host: ``jax_debug_nans`` may look at the device."""
    after, means = result
    # Under an outer ``jit`` or ``eval_shape`` nothing is known of the work yet.
    if any(isinstance(x, jax.core.Tracer) for x in (*work, after.updates)):
        return result
    acted = work.total_iterations > 0 and not work.random
    learned = work.total_updates > 0
    actors = bool(learned)
    if config.agent.policy.interval > 1:
        updates = int(after.updates)
        first = updates - work.total_updates
        actors = bool(work.train_actors) and agent.count_due(first, updates, config.agent) > 0

    def happened(name: str) -> bool:
        if name.startswith(PLAN):
            return acted
        return actors if name.startswith(agent.ACTOR_METRICS) else learned

    blank = {
        name: np.full(value.shape, np.nan, value.dtype)
        for name, value in means.items()
        if not happened(name)
    }
    return after, means | blank


def _check_state(state: TrainState, config: Config, work: Work, extra: int = 0) -> None:
    """Refuse a state whose sizes are not those of ``config``, before it is traced.

    ``extra`` is the number of its rows that are padding.
    """
    # Otherwise tracing fails deep inside, with a shape error that names no field.
    _, rows, num_envs = state.replay.rows.reward.shape
    for name, actual, wanted in (
        ("train.num_seeds", state.keys.shape[0] - extra, config.train.num_seeds),
        ("env.num_envs", num_envs, config.env.num_envs),
        ("train.capacity", rows * num_envs, rows_per_env(config) * config.env.num_envs),
    ):
        if actual != wanted:
            raise ConfigError(f"{name} = {wanted}: the state was made with {actual}")


class Program(NamedTuple):
    """The compiled functions of a run; each is traced exactly once.

    ``chunk`` donates its state: continue with the one it returns.
    """

    env: Env
    spec: AgentSpec
    mesh: Mesh | None
    """The devices over which seeds are spread; None for one (:mod:`pomcp_jax.seed_axis`)."""
    init: Callable[..., TrainState]
    """``(config, seeds=None)``, see :func:`init`. If the devices do not divide S, states have rows
    of padding; means do not."""
    chunk: Compiled
    """``(state, config, work) -> (state, means)``; see :func:`chunk`. Means of what did not
    happen are NaN."""
    seeding: Chunks
    """The chunks of the seeding phase, in order."""
    pretraining: Chunks
    training: Chunks


INIT_READS = frozenset({"train.num_seeds", "train.capacity", "env.num_envs"})
CHUNK_READS = frozenset({"train.num_seeds", "train.seed_actions", "env.num_envs"})
"""Settings that the compiled functions read; no other setting recompiles them."""


def check_environment(config: Config, env: Env) -> None:
    """Refuse settings that disagree with the environment.

    Raises:
      ConfigError: one line naming the field and both values.
    """
    if config.env.action_repeat != env.action_repeat:
        raise ConfigError(
            f"env.action_repeat = {config.env.action_repeat}: environment {env.name!r} was made"
            f" with {env.action_repeat}; must be the same, because frames are counted by it"
        )
    if env.outside is not None and config.train.num_devices > 1:
        raise ConfigError(
            f"train.num_devices = {config.train.num_devices}: the environments of {env.name!r} live"
            " on the host and serve one device; must be 0 or 1"
        )
    if env.outside is not None and config.train.devices_per_seed > 1:
        raise ConfigError(
            f"train.devices_per_seed = {config.train.devices_per_seed}: the environments of"
            f" {env.name!r} live on the host and serve one device; must be 1"
        )
    if config.env.history != env.history:
        raise ConfigError(
            f"env.history = {config.env.history}: environment {env.name!r} was made with"
            f" {env.history}; must be the same (pomcp_jax.envs.history.stacked makes it so)"
        )


def doubts(config: Config, env: Env) -> tuple[str, ...]:
    """Warnings about settings that are allowed but rarely intended, one line each."""
    if env.terminates and not config.agent.world_model.termination:
        return (
            f"agent.world_model.termination = False: episodes of {env.name!r} can terminate, and"
            " the planner plans on past their ends; True learns them",
        )
    return ()


def build(config: Config, env: Env) -> Program:
    """Cut a run into chunks and prepare its jitted functions; compiles nothing yet.

    Warns of :func:`doubts`.

    Raises:
      ConfigError: for a configuration that cannot work, in any of its rows, with this
        environment or on these devices.
    """
    # Every row: a sweep may have one value that cannot work among many that can.
    for row in seed_axis.unstack(config, config.train.num_seeds):
        validation.validate_run(row)
    check_environment(config, env)
    for text in doubts(config, env):
        warnings.warn(text, stacklevel=2)
    spec = acting.build(config.agent, env.observation_size, env.action_size)
    # Environments outside of the program serve one device, however many there are.
    mesh = seed_axis.mesh(config) if env.outside is None else None
    extra = seed_axis.padding(config.train.num_seeds, seed_axis.shares(mesh))

    def start(config, seeds):
        return init(config, env, spec, seeds)

    spread = seed_axis.spread(start, mesh, (None, seed_axis.SPLIT), SPECS)
    begin = Compiled(jax.jit(spread, compiler_options=compiled.once()), INIT_READS)

    def begin_with(config: Config, seeds: Int[Array, " S"] | None = None) -> TrainState:
        # Seeds are an argument, so that another ``train.seed`` does not compile again.
        seeds = own_seeds(config) if seeds is None else seeds
        return begin(config, seed_axis.pad(seeds, len(seeds), mesh))

    def run_chunk(state, config, work):
        return chunk(state, config, work, env=env, spec=spec)

    def finished(result, state, config, work):
        after, means = _nan_means_of_no_steps(result, state, config, work)
        return after, seed_axis.without_padding(means, config.train.num_seeds, mesh)

    specs = (SPECS, None, seed_axis.WHOLE), (SPECS, seed_axis.SPLIT)
    # ``jax_debug_nans`` calls a function again to find the operation: donated arguments are gone.
    debug_nans = jax.config.jax_debug_nans  # type: ignore[attr-defined]
    donated = () if debug_nans else (0,)
    step = jax.jit(seed_axis.spread(run_chunk, mesh, *specs), donate_argnums=donated)
    return Program(
        env,
        spec,
        mesh,
        begin_with,
        Compiled(
            step, CHUNK_READS, functools.partial(_check_state, extra=extra), finished, "chunk"
        ),
        *schedule.phases(config),
    )
