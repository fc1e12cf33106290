"""Training as one loop on the device: act, step, insert, update - for all seeds at once.

Everything a run owns is one pytree, :class:`TrainState`. Learning state has the
seeds S as its leading axis; counters do not, so that schedules stay scalar
conditions under ``vmap`` (a batched ``lax.cond`` would run both branches).
Floats of ``config.agent`` may have that axis too (:mod:`pomcp_jax.sweeps`).
Keys are ``fold_in(seed key, counter)``: results do not depend on how a run is
cut into chunks. Environments are stepped as one flat batch of S N.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import acting, agent, counters, devices, replay, sweeps, validation
from pomcp_jax.acting import Agent
from pomcp_jax.agent import AgentState
from pomcp_jax.config import Config
from pomcp_jax.counters import Stats
from pomcp_jax.envs.protocol import Env
from pomcp_jax.mppi import PlanState
from pomcp_jax.replay import Batch, Index, Replay, Row
from pomcp_jax.sweeps import over_seeds
from pomcp_jax.types import Gaussian, Key, PyTree, TimeStep

AGENT, ENVIRONMENT, ACTING, UPDATING, EVALUATION = range(5)
"""Streams of randomness of a seed."""


class TrainState(NamedTuple):
    """A whole run, as one pytree."""

    agent: AgentState
    replay: Replay
    env: PyTree
    timestep: TimeStep
    plan: PlanState
    keys: Key
    """``[S]``, never changed: all randomness is folded in from counters."""
    stats: Stats
    iteration: Int[Array, ""]
    """Environment steps of each of the S N environments."""
    updates: Int[Array, ""]


SPECS = TrainState(*[devices.SPLIT] * 7, iteration=devices.WHOLE, updates=devices.WHOLE)._replace(
    replay=Replay(rows=devices.SPLIT, inserted=devices.WHOLE)
)
"""How a run is spread over devices: all but three counters by its seeds."""


class Ratio(NamedTuple):
    """A group of the training scan: ``iterations`` environment steps, then ``updates``."""

    iterations: int
    updates: int


def ratio(config: Config) -> Ratio:
    """The smallest whole group with ``train.updates_per_decision``."""
    per_step = Fraction(config.train.updates_per_decision).limit_denominator(1000)
    per_iteration = per_step * config.env.num_envs
    if per_iteration == 0:
        return Ratio(1, 0)
    return Ratio(per_iteration.denominator, per_iteration.numerator)


def rows_per_env(config: Config) -> int:
    """Replay rows of one environment."""
    return config.train.capacity // config.env.num_envs


def replay_bytes(config: Config, env: Env) -> int:
    """Bytes of replay of all seeds."""
    rows = rows_per_env(config) * config.env.num_envs * config.train.num_seeds
    return rows * replay.row_bytes(env.observation_size, env.action_size)


def init(
    config: Config, env: Env, static: Agent, seeds: Int[Array, " S"] | None = None
) -> TrainState:
    """Fresh state of ``train.num_seeds`` seeds; seed k has the key ``train.seed + k``.

    ``seeds`` names other numbers. Rows of the same number draw the same random
    numbers, in whichever batch: the cells of a sweep share theirs.
    """
    num_seeds, num_envs = config.train.num_seeds, config.env.num_envs
    if seeds is None:
        seeds = config.train.seed + jnp.arange(num_seeds)
    keys = jax.vmap(jax.random.key)(seeds)
    agents = init_agents(jax.vmap(lambda key: jax.random.fold_in(key, AGENT))(keys), config, static)
    env_keys = jax.vmap(
        lambda key: jax.random.split(jax.random.fold_in(key, ENVIRONMENT), num_envs)
    )(keys)
    env_state, timestep = env.reset(env_keys.reshape(-1))
    ring = replay.init(rows_per_env(config), num_envs, env.observation_size, env.action_size)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num_seeds, *x.shape)), ring.rows)
    plan = acting.init_plan(config.agent, static, num_envs)
    return TrainState(
        agent=agents,
        replay=Replay(rows, ring.inserted),
        env=env_state,
        timestep=timestep,
        plan=jax.tree.map(lambda x: jnp.zeros((num_seeds, *x.shape), x.dtype), plan),
        keys=keys,
        stats=counters.init(num_seeds),
        iteration=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
    )


def init_agents(keys: Key, config: Config, static: Agent) -> AgentState:
    """Fresh agents, one for each of the ``[S]`` keys."""

    def fresh(config, key):
        return agent.init(key, config, static)

    return jax.vmap(fresh, in_axes=(sweeps.axes(config.agent), 0))(config.agent, keys)


_SEEDS = Replay(rows=0, inserted=None)  # type: ignore[arg-type]


def fold_keys(state: TrainState, stream: int, counter: Int[Array, ""]) -> Key:
    """``[S]`` keys of one stream (:data:`ACTING` ...) at a counter."""

    def fold(key):
        return jax.random.fold_in(jax.random.fold_in(key, stream), counter)

    return jax.vmap(fold)(state.keys)


def _split_seeds(tree: PyTree, num_seeds: int) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(num_seeds, -1, *x.shape[1:]), tree)


class Decision(NamedTuple):
    """What acting gives to the environments and to replay, leading axes ``[S, N]``."""

    action: Float[Array, "S N A"]
    prior: Gaussian
    value: Float[Array, "S N"]
    plan: PlanState
    metrics: dict[str, Float[Array, " S"]]


def decide(state: TrainState, config: Config, static: Agent) -> Decision:
    """Plan an action in every environment of every seed."""
    num_seeds = config.train.num_seeds
    timestep = _split_seeds(state.timestep, num_seeds)

    def one(config, params, key, obs, plan, is_first):
        return acting.act(params, key, obs, plan, is_first, agent=static, config=config)

    keys = fold_keys(state, ACTING, state.iteration)
    params = state.agent.params
    out = over_seeds(one, config.agent, params, keys, timestep.obs, state.plan, timestep.is_first)
    info = out.diagnostics
    metrics = {
        f"plan/{name}": jnp.mean(getattr(info, name).astype(jnp.float32), axis=1)
        for name in info._fields
    }
    return Decision(out.action, out.prior, out.value, out.next_state, metrics)


def decide_randomly(state: TrainState, config: Config, static: Agent) -> Decision:
    """Uniform actions of the seeding phase, with the record that ``policy.seed_record`` names."""
    shape = (config.env.num_envs, static.action_size)
    keys = fold_keys(state, ACTING, state.iteration)
    action = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))(keys)
    policy = config.agent.policy
    prior = Gaussian(jnp.zeros_like(action), jnp.ones_like(action))
    if policy.seed_record == "action":
        spread = lambda config, x: jnp.full_like(x, config.policy.seed_std)  # noqa: E731
        prior = Gaussian(action, over_seeds(spread, config.agent, action))
    return Decision(action, prior, jnp.zeros(action.shape[:2]), state.plan, {})


def environment_step(state: TrainState, decision: Decision, config: Config, env: Env) -> TrainState:
    """Step all environments and insert one row for each."""
    num_seeds = config.train.num_seeds
    flat = decision.action.reshape(-1, decision.action.shape[-1])
    env_state, following = env.step(state.env, flat)
    before = _split_seeds(state.timestep, num_seeds)
    after = _split_seeds(following, num_seeds)
    row = Row(
        obs=before.obs,
        action=decision.action,
        reward=after.reward,
        terminated=after.terminated,
        last=after.is_first,
        prior=decision.prior,
        prior_value=decision.value,
        made=jnp.full_like(decision.value, state.updates, jnp.int32),
    )
    ring = jax.vmap(replay.insert, in_axes=(_SEEDS, 0), out_axes=_SEEDS)(state.replay, row)
    return state._replace(
        replay=ring,
        env=env_state,
        timestep=following,
        plan=decision.plan,
        stats=jax.vmap(counters.count)(state.stats, after),
        iteration=state.iteration + 1,
    )


def update_step(
    state: TrainState, config: Config, static: Agent, work: "Work"
) -> tuple[TrainState, dict[str, Float[Array, " S"]]]:
    """One update of every seed: sample, re-plan where it is due, learn."""
    length = config.agent.mppi.horizon + 1
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(fold_keys(state, UPDATING, state.updates))
    size = config.agent.optimizer.batch_size
    sample = jax.vmap(lambda r, key: replay.sample(r, key, size, length), in_axes=(_SEEDS, 0))
    batch = sample(state.replay, keys[:, 0])
    ring = state.replay
    if config.agent.replan.interval:

        def fresh():
            def one(config, params, key, batch):
                return acting.replan(params, key, batch, agent=static, config=config)

            prior, value = over_seeds(one, config.agent, state.agent.params, keys[:, 2], batch)
            return prior, value, jnp.full(value.shape, state.updates, jnp.int32)

        horizon, width = length - 1, config.agent.replan.batch_size
        due = (jnp.mod(state.updates, config.agent.replan.interval) == 0) & work.replan
        if config.agent.replan.select != "first":
            batch = _reorder(state, batch, due, config, static)
        rows = batch.rows
        held = jax.tree.map(
            lambda x: x[:, :horizon, :width], (rows.prior, rows.prior_value, rows.made)
        )
        # The condition chooses among small arrays only; the ring is written
        # either way (mostly with what it holds), so it is never copied.
        prior, value, made = jax.lax.cond(due, fresh, lambda: held)
        batch, index = jax.vmap(agent.apply_replan)(batch, prior, value, made)
        write = jax.vmap(replay.write_back, in_axes=(_SEEDS, 0, 0, 0, 0), out_axes=_SEEDS)
        ring = write(ring, Index(*index), prior, value, made)

    def learn(config, one, batch, key):
        return agent.update(
            one, batch, key, agent=static, config=config, train_actors=work.train_actors
        )

    agents, metrics = over_seeds(learn, config.agent, state.agent, batch, keys[:, 1])
    return state._replace(agent=agents, replay=ring, updates=state.updates + 1), metrics


def _reorder(
    state: TrainState, batch: Batch, due: Bool[Array, ""], config: Config, static: Agent
) -> Batch:
    """Every seed's batch with the windows first that are to be planned anew, if it is due."""

    def by_urgency():
        def one(config, params, batch):
            return acting.replan_order(params, batch, state.updates, agent=static, config=config)

        return over_seeds(one, config.agent, state.agent.params, batch)

    size = config.agent.optimizer.batch_size
    as_drawn = jnp.broadcast_to(jnp.arange(size)[None], (config.train.num_seeds, size))
    order = jax.lax.cond(due, by_urgency, lambda: as_drawn)
    return jax.vmap(lambda order, batch: jax.tree.map(lambda x: x[:, order], batch))(order, batch)


class Work(NamedTuple):
    """What a chunk does, in traced numbers: all phases share one compiled function."""

    groups: Int[Array, ""] | int
    iterations: Int[Array, ""] | int
    """Environment steps of a group."""
    updates: Int[Array, ""] | int
    """Updates of a group, after its environment steps."""
    random: Bool[Array, ""] | bool
    """Act uniformly at random instead of planning."""
    train_actors: Bool[Array, ""] | bool
    replan: Bool[Array, ""] | bool


def chunk(
    state: TrainState, config: Config, work: Work, *, env: Env, static: Agent
) -> tuple[TrainState, dict[str, Float[Array, " S"]]]:
    """Do ``work``; returns the state and the mean of every metric over the chunk.

    Trip counts are traced: all phases cost one compilation. Metrics of what did not happen are NaN.
    """
    # Nested jits: traced once, although shapes are asked for before they run.
    plan = jax.jit(lambda state, config: decide(state, config, static))
    improve = jax.jit(lambda state, config, work: update_step(state, config, static, work))
    acted = jax.eval_shape(plan, state, config).metrics
    learned = jax.eval_shape(improve, state, config, work)[1]
    none = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), acted)

    def plan_or_not(state: TrainState) -> Decision:
        def at_random() -> Decision:
            return decide_randomly(state, config, static)._replace(metrics=none)

        return jax.lax.cond(work.random, at_random, lambda: plan(state, config))

    def act(_, carry):
        state, acted, learned = carry
        decision = plan_or_not(state)
        state = environment_step(state, decision, config, env)
        return state, _add(acted, decision.metrics), learned

    def learn(_, carry):
        state, acted, learned = carry
        state, metrics = improve(state, config, work)
        return state, acted, _add(learned, metrics)

    def group(_, carry):
        carry = jax.lax.fori_loop(0, work.iterations, act, carry)
        return jax.lax.fori_loop(0, work.updates, learn, carry)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (acted, learned))
    state, acted, learned = jax.lax.fori_loop(0, work.groups, group, (state, *zeros))
    means = _divide(acted, work.groups * work.iterations)
    return state, means | _divide(learned, work.groups * work.updates)


def _add(total: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, more)


def _divide(total: dict[str, Array], count: Array | int) -> dict[str, Array]:
    count = jnp.asarray(count, jnp.float32)  # 0 / 0 is the NaN that is wanted
    return {name: value / count for name, value in total.items()}


class Program(NamedTuple):
    """The compiled functions of a run; each is traced exactly once.

    ``chunk`` donates its state: go on with what it returns.
    """

    env: Env
    static: Agent
    mesh: Mesh | None
    """The devices over which seeds are spread; None for one (:mod:`pomcp_jax.devices`)."""
    init: Callable[..., TrainState]
    """``(config, seeds=None)``, see :func:`init`."""
    chunk: Callable[[TrainState, Config, Work], tuple[TrainState, dict[str, Array]]]
    seeding: tuple[Work, ...]
    """The chunks of the random seeding phase, in order."""
    pretraining: tuple[Work, ...]
    training: tuple[Work, ...]


def _cut(total: int, most: int) -> list[int]:
    """``total`` as chunks of ``most``, the last one shorter."""
    return [min(most, total - done) for done in range(0, total, max(most, 1))]


def build(config: Config, env: Env) -> Program:
    """Cut a run into chunks and prepare its jitted functions; compiles nothing yet.

    Raises:
      ConfigError: for a configuration that cannot work, in any of its rows or on these devices.
    """
    for one in sweeps.unstack(config, config.train.num_seeds):
        validation.validate_run(one)
    train, num_envs, group = config.train, config.env.num_envs, ratio(config)
    static = acting.build(config.agent, env.observation_size, env.action_size)
    seed_iterations = -(-train.seed_decisions // num_envs)
    groups = -(-(train.total_decisions - train.seed_decisions) // (num_envs * group.iterations))
    most = max(1, train.chunk_decisions // (num_envs * group.iterations))
    actors = config.agent.policy.train_in_pretraining
    pretraining = _cut(train.pretrain_updates, most * max(group.updates, 1))

    mesh = devices.mesh(config)

    def start(config, seeds):
        return init(config, env, static, seeds)

    def begin(config, seeds=None):
        if seeds is None and mesh is not None:  # every device has to know its own
            seeds = config.train.seed + jnp.arange(config.train.num_seeds)
        return devices.spread(start, mesh, (None, devices.SPLIT), SPECS)(config, seeds)

    def run_chunk(state, config, work):
        return chunk(state, config, work, env=env, static=static)

    specs = (SPECS, None, devices.WHOLE), (SPECS, devices.SPLIT)

    return Program(
        env=env,
        static=static,
        mesh=mesh,
        init=jax.jit(begin),
        chunk=jax.jit(devices.spread(run_chunk, mesh, *specs), donate_argnums=0),
        seeding=(Work(1, seed_iterations, 0, True, False, False),),
        pretraining=tuple(Work(1, 0, n, True, actors, False) for n in pretraining),
        training=tuple(Work(n, *group, False, True, True) for n in _cut(groups, most)),
    )
