"""Comparison of our dm_control tasks with dm_control itself.

    python -m experiments.benchmarks.fidelity [task ...] [--backend=mjx|host|warp] [--out=DIR]
    JAX_ENABLE_X64=1 python -m experiments.benchmarks.fidelity --steps-only [task ...]
    python -m experiments.benchmarks.fidelity_tables [DIR]

For each task: observations, rewards and terminations after equal states and equal actions; moments
and ranges of 1,000 resets; returns of fixed policies over 20 (random: 100) episodes in both, with
95 % intervals; non-finite numbers in 100,000 random control steps. Tasks that differ only in their
reward are measured together, with all rewards computed from the same states. Writes one JSON file
per task.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from experiments import xla
from experiments.benchmarks.dm_control import controls, flat, original, other_tasks, resets
from pomcp_jax import envs, files
from pomcp_jax.envs.dm_control import models
from pomcp_jax.envs.protocol import Task
from pomcp_jax.reporting.statistics import mean_and_half
from pomcp_jax.running import process

OUT = pathlib.Path("experiments/results/fidelity")
POLICIES = ("zero", "random", "wave")
EPISODES, RANDOM_EPISODES = 20, 100
"""Episodes per policy, and of the random policy: 100,000 control steps."""
STEPS, CHUNK = 1000, 100
"""Control steps per episode, equal in all of these tasks, and per call of our environments."""

SHARED = {
    "cartpole": ({"balance", "balance_sparse"}, {"swingup", "swingup_sparse"}),
    "dog": ({"stand", "walk", "trot", "run"},),
    "hopper": ({"stand", "hop"},),
    "humanoid": ({"stand", "walk", "run"},),
    "humanoid_CMU": ({"stand", "walk", "run"},),
    "quadruped": ({"walk", "run"},),
    "walker": ({"stand", "walk", "run"},),
}
"""Tasks of a domain with equal physics, resets and observations."""

EPISODE = {
    "finger": lambda physics: physics.target_position(),
    "fish": lambda physics: physics.named.data.geom_xpos["target"],
    "reacher": lambda physics: physics.named.model.geom_pos["target", :2],
    "swimmer": lambda physics: physics.named.model.geom_pos["target", :2],
}
"""Values that a domain draws per episode, read from dm_control's physics."""

EDITS = {"dog": models.keep_simple_contacts}
"""Edits of our MJX models, applied to dm_control's for a second comparison."""


def groups(names: Iterable[str]) -> list[list[str]]:
    """``names`` in order, grouped into lists of tasks that can be measured together."""
    grouped: dict[Any, list[str]] = {}
    for name in names:
        domain, task = name.split("-")
        together = [i for i, tasks in enumerate(SHARED.get(domain, ())) if task in tasks]
        grouped.setdefault((domain, *together) if together else name, []).append(name)
    return list(grouped.values())


def blank_state(task: Task) -> Any:
    """State of zeros, made without ``reset``, which would compile the physics once more."""
    shapes = jax.eval_shape(task.reset, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def adopt(state: Any, physics: Any, domain: str) -> Any:
    """``state`` with dm_control's positions, velocities, activations and target."""
    real, data = state.qpos.dtype, physics.data
    hidden = state.motion.hidden
    if hidden.dtype == jnp.uint32:  # the host engine's float64 state
        parts = [np.zeros(1), data.qpos, data.qvel, data.act]
        hidden = jnp.asarray(np.concatenate(parts).view(np.uint32))
    motion = state.motion._replace(
        qpos=jnp.asarray(np.array(data.qpos), real),
        qvel=jnp.asarray(np.array(data.qvel), real),
        act=jnp.asarray(np.array(data.act), real),
        hidden=hidden,
    )
    drawn = state.episode
    if domain in EPISODE:
        drawn = jnp.asarray(np.array(EPISODE[domain](physics)), real)
    return state._replace(motion=motion, episode=drawn)


class Deviation(NamedTuple):
    """Largest differences between our task and dm_control."""

    step_obs: float
    """After one control step from equal states; relative for numbers above one."""
    step_obs_median: float
    """Median over steps of the largest entry."""
    step_reward: float
    edited_obs: float
    """As ``step_obs``, compared with dm_control after :data:`EDITS`."""
    edited_steps: float
    """Share of steps in which the edits change dm_control's observation."""
    obs: dict[int, float]
    """By the number of control steps since the states were equal."""
    reward: dict[int, float]
    rounded: dict[int, float]
    """dm_control compared with itself, the state rounded to float32 after every control step: the
    divergence that rounding alone causes in the original physics."""


def round_state(physics: Any) -> None:
    """Round positions, velocities and activations to float32, in place."""
    for part in (physics.data.qpos, physics.data.qvel, physics.data.act):
        part[:] = part.astype(np.float32)


def join(physics: Any, other: Any) -> None:
    """Set dm_control's physics to the state of another, including the solver's warm start."""
    for kind in ("qpos", "qvel", "act", "qacc_warmstart"):
        getattr(physics.data, kind)[:] = getattr(other.data, kind)
    mujoco.mj_step1(physics.model.ptr, physics.data.ptr)


def three_groups(name: str, episodes: int) -> tuple[list[Any], ...]:
    """dm_control's environments: references, twins with rounded states, and edited models."""
    references, twins, edited = (
        [original(name, seed=i) for i in range(episodes)] for _ in range(3)
    )
    for environment in (*references, *twins, *edited):
        environment.reset()
    edit = EDITS.get(name.split("-")[0])
    for environment in edited if edit else ():
        edit(environment.physics.model.ptr)
    return references, twins, edited


def step_originals(
    groups: tuple[list[Any], ...], actions: np.ndarray, reward_tasks: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step all groups; returns the references' observations and rewards, and the others'
    observations."""
    true_obs, true_reward, twin_obs, edited_obs = [], [], [], []
    for reference, twin, edit, action in zip(*groups, actions, strict=True):
        ctrl = controls(reference, action.astype(np.float64))
        join(edit.physics, reference.physics)
        edited_obs.append(flat(edit.step(ctrl).observation))
        answer = reference.step(ctrl)
        true_obs.append(flat(answer.observation))
        others = [other.get_reward(reference.physics) for other in reward_tasks]
        true_reward.append([answer.reward, *others])
        round_state(twin.physics)
        twin_obs.append(flat(twin.step(ctrl).observation))
    return np.stack(true_obs), np.array(true_reward), np.stack(twin_obs), np.stack(edited_obs)


def apart(values: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative where ``reference`` exceeds 1."""
    return float(np.max(np.abs(values - reference) / np.maximum(1.0, np.abs(reference))))


def deviations(
    names: Sequence[str],
    episodes: int = 3,
    checkpoints: tuple[int, ...] = (1, 10, 100),
    backend: str = "mjx",
) -> dict[str, Deviation]:
    """Compare tasks under uniform actions; of all but the first only the rewards are used."""
    name, domain = names[0], names[0].split("-")[0]
    task = envs.make_task(name, backend=backend)
    rewards = [task.reward, *(envs.make_task(n, backend=backend).reward for n in names[1:])]

    @jax.jit
    @jax.vmap
    def follow(state: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        state = task.step(state, action)
        return state, task.observe(state), jnp.stack([reward(state) for reward in rewards])

    def adopt_all() -> Any:
        states = [adopt(blank, reference.physics, domain) for reference in references]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    generator = np.random.default_rng(0)
    blank = blank_state(task)
    groups = references, _, _ = three_groups(name, episodes)
    reward_tasks = other_tasks(names)
    free = adopt_all()
    step_obs, step_reward = [], np.zeros(len(names))
    edited, changed = [], []
    obs, reward, rounded = {}, {}, {}

    for i in range(1, max(checkpoints) + 1):
        action = generator.uniform(-1, 1, (episodes, task.action_size)).astype(np.float32)
        # Tied: from dm_control's own state, so that errors do not add up. Free: from our last one.
        tied = follow(adopt_all(), action)
        free, *seen = follow(free, action)
        true_obs, true_reward, twin_obs, edited_obs = step_originals(groups, action, reward_tasks)
        step_obs.append(apart(tied[1], true_obs))
        edited.append(apart(tied[1], edited_obs))
        changed += [(a != b).any() for a, b in zip(edited_obs, true_obs, strict=True)]
        step_reward = np.maximum(step_reward, np.max(np.abs(tied[2] - true_reward), axis=0))
        if i in checkpoints:
            obs[i], rounded[i] = apart(seen[0], true_obs), apart(twin_obs, true_obs)
            reward[i] = np.max(np.abs(seen[1] - true_reward), axis=0)
    largest, median = float(np.max(step_obs)), float(np.median(step_obs))
    return {
        each: Deviation(
            step_obs=largest,
            step_obs_median=median,
            step_reward=float(step_reward[k]),
            edited_obs=float(np.max(edited)),
            edited_steps=float(np.mean(changed)),
            obs=obs,
            reward={at: float(values[k]) for at, values in reward.items()},
            rounded=rounded,
        )
        for k, each in enumerate(names)
    }


def wave(steps: int, size: int) -> np.ndarray:
    """Hand-written controller: each motor a sine with a period of 50 steps, phases spread evenly.

    It moves every body without learning, and is the same in both environments.
    """
    phase = 2 * np.pi * np.arange(size) / size
    return np.sin(2 * np.pi * np.arange(steps)[:, None] / 50 + phase).astype(np.float32)


Returns = dict[str, dict[str, list[float]]]
"""Returns of a policy's episodes, by task and policy."""


def their_returns(names: Sequence[str]) -> Returns:
    """Returns in dm_control; more episodes of the random policy, whose rewards are rare."""
    totals: dict[str, list[list[float]]] = {}
    others = other_tasks(names)
    for policy in POLICIES:
        reference = original(names[0], seed=2)
        generator = np.random.default_rng(2)
        shape = (STEPS, reference.action_spec().shape[0])
        totals[policy] = []
        for _ in range(RANDOM_EPISODES if policy == "random" else EPISODES):
            actions = {
                "zero": np.zeros(shape),
                "random": generator.uniform(-1, 1, shape),
                "wave": wave(*shape),
            }[policy]
            reference.reset()
            total = np.zeros(len(names))
            for action in actions:
                timestep = reference.step(controls(reference, action))
                more = [other.get_reward(reference.physics) for other in others]
                total += [timestep.reward, *more]
            assert timestep.last()
            totals[policy].append(total.tolist())
    return {
        name: {policy: [episode[k] for episode in totals[policy]] for policy in POLICIES}
        for k, name in enumerate(names)
    }


class Ours(NamedTuple):
    """Returns of our episodes, and the number of steps with non-finite numbers."""

    returns: Returns
    invalid: int
    steps: int
    random_steps: int


def our_returns(
    names: Sequence[str], backend: str = "mjx", random_episodes: int = RANDOM_EPISODES
) -> Ours:
    """Returns of all policies in one batch: rows of zeros first, then random, then the wave."""
    task = envs.make_task(names[0], backend=backend)
    others = [envs.make_task(name, backend=backend).reward for name in names[1:]]
    env = envs.make_env(task)
    rows = {"zero": EPISODES, "random": random_episodes, "wave": EPISODES}
    batch = sum(rows.values())
    waves = jnp.asarray(wave(task.episode_steps, task.action_size))

    @jax.jit
    def run(state: Any, key: jax.Array, at: jax.Array) -> tuple[Any, tuple]:
        def body(state: Any, i: jax.Array) -> tuple[Any, tuple]:
            shape = (rows["random"], task.action_size)
            noise = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0)
            quiet = jnp.zeros((EPISODES, task.action_size), jnp.float32)
            swung = jnp.broadcast_to(waves[i], quiet.shape)
            action = jnp.concatenate([quiet, noise.astype(jnp.float32), swung])
            state, timestep = env.step(state, action)
            more = [jax.vmap(other)(state.task).astype(jnp.float32) for other in others]
            # The first step of an episode has no reward; rewards of states do not know that.
            more = [jnp.where(timestep.is_first, 0.0, reward) for reward in more]
            return state, (jnp.stack([timestep.reward, *more]), timestep.invalid)

        return jax.lax.scan(body, state, at + jnp.arange(CHUNK))

    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(3), batch))
    total, invalid = np.zeros((len(names), batch)), 0
    for at in range(0, task.episode_steps, CHUNK):
        state, (reward, bad) = run(state, jax.random.key(4), at)
        total += np.asarray(reward, np.float64).sum(axis=0)
        invalid += int(np.sum(bad))
    ends = np.cumsum(list(rows.values()))[:-1]
    returns = {
        name: {
            policy: part.tolist() for policy, part in zip(rows, np.split(values, ends), strict=True)
        }
        for name, values in zip(names, total, strict=True)
    }
    steps = task.episode_steps
    return Ours(returns, invalid, batch * steps, random_episodes * steps)


def measure(
    names: Sequence[str], backend: str, steps_only: bool, random_episodes: int
) -> dict[str, dict]:
    """Comparisons of tasks that can be measured together, as JSON."""
    start = time.perf_counter()
    about = {
        "backend": backend,
        **process.describe(process.command("experiments.benchmarks.fidelity", sys.argv)),
    }
    about["x64"] = bool(jax.config.jax_enable_x64)
    measured = deviations(names, backend=backend)
    results = {
        name: {"task": name, **about, "deviation": measured[name]._asdict()} for name in names
    }
    if not steps_only:
        first = resets(names[0], backend=backend)._asdict()
        ours = our_returns(names, backend, random_episodes)
        theirs = their_returns(names)
        for name in names:
            results[name] |= {
                "resets": first,
                "invalid": ours.invalid,
                "control_steps": ours.steps,
                "random_control_steps": ours.random_steps,
                "returns": {
                    policy: {
                        "ours": mean_and_half(ours.returns[name][policy]),
                        "dm_control": mean_and_half(theirs[name][policy]),
                    }
                    for policy in POLICIES
                },
            }
    for name in names:
        results[name]["measured_with"] = list(names)
        results[name]["seconds"] = round(time.perf_counter() - start, 1)
    return results


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--backend", choices=("mjx", "host", "warp"), default="mjx")
    parser.add_argument("--steps-only", action="store_true")
    parser.add_argument("--random-episodes", type=int, default=RANDOM_EPISODES)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    names = args.tasks or envs.dm_control_tasks(extra=False)
    for name in names:
        envs.check_name(name)
    args.out.mkdir(parents=True, exist_ok=True)
    for together in groups(names):
        results = measure(together, args.backend, args.steps_only, args.random_episodes)
        for name, result in results.items():
            files.write_json(args.out / f"{name}.json", result)
            print(json.dumps(result | {"versions": None}), flush=True)


if __name__ == "__main__":
    main()
