"""What a run will cost, estimated before anything is compiled.

The arithmetic of plans and updates follows from sizes. How fast this CPU does it is measured by a
matrix product (:func:`measure`); the cost of everything else was fitted to the benchmarks of
docs/benchmarks.md and to stored runs, all on one or two cores. tests/test_cost.py compares the
estimate with them. On an accelerator only the arithmetic is known.
"""

import dataclasses
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pomcp_jax import calibration, envs, seed_axis
from pomcp_jax.config import AgentConfig, Config
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import process
from pomcp_jax.schedule import ratio

ELEMENT = 130.0
"""Time of one hidden unit's norm and activation, in operations of a matrix product."""
DRAW = 10_000.0
"""The same for a random number of the planner."""
PARAMETER = 1_800.0
"""The same for a parameter's step of the optimiser and its target network."""
CALL = 2.3e-3
"""Seconds of a plan or an update besides its arithmetic."""
HOST = 0.15e-3
"""Seconds of a step of environments on the host besides their physics."""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Work of a plan or an update, in operations of a matrix product."""

    products: float
    """Operations of matrix products themselves."""
    rest: float
    """What everything else takes, on one core."""

    def __add__(self, other: "Arithmetic") -> "Arithmetic":
        return Arithmetic(self.products + other.products, self.rest + other.rest)

    def __mul__(self, times: float) -> "Arithmetic":
        return Arithmetic(self.products * times, self.rest * times)

    def __rmul__(self, times: float) -> "Arithmetic":
        return self * times

    def seconds(self, machine: "Machine") -> float:
        """Time that it takes."""
        # Cores share large products; the rest is small loops, which gain nothing from them.
        return (self.products + self.rest * machine.cores) / machine.rate


class Machine(NamedTuple):
    """What an estimate needs to know of a CPU."""

    rate: float
    """Float32 operations per second of a large matrix product on all cores."""
    cores: float
    """Whole, unless the machine is a share of another."""


class Estimate(NamedTuple):
    """Times on this machine, in seconds; of all seeds together."""

    decision: float
    """A decision of every seed, with its updates."""
    update: float
    """An update of every seed."""
    evaluation: float
    """An evaluation of the planner."""


def mlp(*sizes: int) -> Arithmetic:
    """One row through linear layers of these sizes, all but the last with norm and activation."""
    products = sum(2 * a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    return Arithmetic(float(products), ELEMENT * sum(sizes[1:]))


def networks(agent: AgentConfig, observation: int, action: int) -> dict[str, Arithmetic]:
    """One row through each network."""
    model = agent.world_model
    z, m, bins = model.latent_size, model.mlp_width, model.num_bins
    hidden = (model.encoder_width,) * max(model.encoder_layers - 1, 1)
    value = z if model.critic == "v" else z + action
    return {
        "encoder": mlp(observation, *hidden, z),
        "dynamics": mlp(z + action, m, m, z),
        "reward": mlp(z + action, m, m, bins),
        "head": mlp(value, m, m, bins),
        "policy": mlp(z, m, m, 2 * action),
    }


def plan(
    agent: AgentConfig, observation: int, action: int, *, replanned: bool = False
) -> Arithmetic:
    """One plan: samples scored in each iteration, proposals once.

    Args:
      agent: configuration.
      observation: size O.
      action: size A.
      replanned: with the sizes of re-planning instead of those of acting.
    """
    n, sizes = networks(agent, observation, action), agent.mppi
    samples, iterations = sizes.num_samples, sizes.iterations
    if replanned:
        samples = agent.replan.num_samples or samples
        iterations = agent.replan.iterations or iterations
    tail = agent.critic.num_tail_heads * n["head"]
    if agent.world_model.critic == "q":
        tail += n["policy"]
    sequence = sizes.horizon * (n["dynamics"] + n["reward"]) + tail
    draws = Arithmetic(0.0, DRAW * sizes.horizon * action)
    free = iterations * max(samples - sizes.num_proposals, 0) * (sequence + draws)
    proposal = sequence + sizes.horizon * n["policy"]
    if sizes.knots:
        # The policy's own roll-out, and then the curve through its actions at the knots.
        proposal += sizes.horizon * n["dynamics"]
    return free + sizes.num_proposals * proposal + n["encoder"]


def update(agent: AgentConfig, observation: int, action: int) -> Arithmetic:
    """One update, its share of re-planning included.

    A backward pass costs twice its forward pass; if only the input's gradient is needed, once.
    """
    n, model = networks(agent, observation, action), agent.world_model
    horizon, batch = agent.mppi.horizon, agent.optimizer.batch_size
    heads, states = agent.critic.num_target_heads, horizon + 1
    window = agent.window
    one = (window + 3) * n["encoder"]
    one += window * (n["policy"] + heads * n["head"])
    one += 3 * horizon * (n["dynamics"] + n["reward"] + model.num_heads * n["head"])
    actors = states * (3 * n["policy"] + 2 * agent.policy.num_q_heads * n["head"])
    if agent.policy.learns_prior:
        actors += states * 4 * n["policy"]
    one += actors * (1.0 / agent.policy.interval)
    if agent.policy.kl_tuning == "calibrated":
        ends = calibration.ACTIONS / batch
        one += ends * (2 * n["encoder"] + n["policy"] + 2 * model.num_heads * n["head"])
    networks_of = {"head": model.num_heads, "policy": 1 + agent.policy.learns_prior}
    weights = sum(count.products / 2 * networks_of.get(k, 1) for k, count in n.items())
    out = batch * one + Arithmetic(0.0, PARAMETER * weights)
    if agent.replan.interval:
        plans = agent.replan.batch_size * horizon / agent.replan.interval
        out += plans * plan(agent, observation, action, replanned=True)
    return out


def physics(config: Config, observation: int, batch: float) -> float:
    """Seconds of one decision of ``batch`` environments; 0 where nothing is known of the task.

    A rough rule from ``experiments/results/env_speed``: bodies with more joints observe more.
    """
    if config.env.task not in envs.dm_control_tasks():
        return 0.0
    if config.env.backend == "host":
        one = HOST + 1.5e-6 * observation * batch
    else:
        one = 1e-6 * observation**1.5 * batch
    return one * config.env.action_repeat


def measure(seconds: float = 0.05) -> Machine | None:
    """Speed of this CPU as it is loaded now; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return None
    matrix = jnp.ones((512, 512), jnp.float32)
    # By XLA, as in training: other libraries share loaded cores in other ways.
    product = jax.jit(lambda x: x @ x).lower(matrix).compile()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix))
        times.append(time.perf_counter() - begin)
    return Machine(2 * 512**3 / statistics.median(times), process.cpu_cores())


def updates_per_iteration(config: Config) -> float:
    """Updates of a seed for one step of its environments."""
    group = ratio(config)
    return group.updates / group.iterations


def estimate(config: Config, env: Env, machine: Machine, devices: int = 1) -> Estimate:
    """Estimate of a run on a CPU, whose cores share ``devices`` equally."""
    agent, envs = config.agent, config.env.num_envs
    sizes = env.observation_size, env.action_size
    # Devices compute at the same time, each its seeds on its part of the cores.
    parts = min(devices, machine.cores)
    rows = config.train.num_seeds + seed_axis.padding(config.train.num_seeds, devices)
    seeds = rows / parts
    machine = Machine(machine.rate / parts, machine.cores / parts)
    one = plan(agent, *sizes).seconds(machine)
    learn = seeds * (update(agent, *sizes).seconds(machine) + CALL)
    iteration = seeds * (envs * one + CALL) + physics(config, sizes[0], seeds * envs)
    iteration *= not config.train.offline
    episodes = config.train.eval_episodes
    step = seeds * (episodes * one + CALL) + physics(config, sizes[0], seeds * episodes)
    return Estimate(
        decision=(iteration + updates_per_iteration(config) * learn) / envs,
        update=learn,
        evaluation=step * (env.episode_length + 1),
    )


def operations(config: Config, env: Env) -> float:
    """Operations of matrix products for a decision of one seed, with its updates."""
    sizes = config.agent, env.observation_size, env.action_size
    updates = updates_per_iteration(config) / config.env.num_envs
    return plan(*sizes).products + updates * update(*sizes).products


class Todo(NamedTuple):
    """What is left of a run."""

    decisions: int
    """Per seed."""
    evaluations: int

    def seconds(self, decision: float, evaluation: float) -> float:
        """Time that it takes, given the seconds of each."""
        return self.decisions * decision + self.evaluations * evaluation


def todo(config: Config, done: int, last_evaluation: int, evaluated_at: int) -> Todo:
    """Decisions and evaluations that are left.

    Args:
      config: of the run.
      done: decisions so far.
      last_evaluation: decisions at the last scheduled evaluation, 0 before the first.
      evaluated_at: decisions at the last evaluation of any kind, -1 before the first.
    """
    total, interval = config.train.total_decisions, config.train.eval_decisions
    left = max(0, total - done)
    if not interval:
        return Todo(left, int(evaluated_at < total))
    scheduled, rest = divmod(max(0, total - last_evaluation), interval)
    # The last evaluation is not repeated where a scheduled one is due at the end.
    final = int(evaluated_at < total and (rest > 0 or scheduled == 0))
    return Todo(left, scheduled + final)


UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"))


def text(seconds: float) -> str:
    """``3.4 days``, ``12 minutes``, ``0.58 s``, ``16 ms``."""
    for size, unit in UNITS:
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return f"{seconds:.2g} s" if seconds >= 0.0995 else f"{1e3 * seconds:.2g} ms"


def line(config: Config, env: Env, left: Todo, known: Estimate | None) -> str:
    """The estimate for the user; without one, on an accelerator, what is known there."""
    seeds, cores = config.train.num_seeds, process.cpu_cores()
    if known is None:
        gflop = operations(config, env) / 1e9
        return (
            f"cost: {gflop:.3g} GFLOP a decision and seed; the time on this device is known after"
            " the first chunk of training"
        )
    of = f" of {seeds} seeds" if seeds > 1 else ""
    evaluations = f" and {left.evaluations} evaluations" if left.evaluations > 1 else ""
    total = left.seconds(known.decision, known.evaluation)
    counted = "" if physics(config, env.observation_size, 1) else ", without the environment"
    return (
        f"cost: about {text(known.decision)} a decision{of}, {left.decisions:,} decisions"
        f"{evaluations} = {text(total)} on {cores} CPU core{'s' * (cores > 1)} (estimated within a"
        f" factor of two{counted})"
    )
