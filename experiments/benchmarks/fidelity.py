"""Our dm_control tasks beside dm_control itself.

    python -m experiments.benchmarks.fidelity [task ...] [--backend=mjx|host] [--out=DIR]
    JAX_ENABLE_X64=1 python -m experiments.benchmarks.fidelity --steps-only [task ...]
    python -m experiments.benchmarks.fidelity --table [--out=DIR]

For each task: observations, rewards and terminations after equal states and
equal actions; moments and ranges of 1,000 resets; returns of fixed policies
over 20 episodes in both, with 95 % intervals; non-finite numbers in 100,000
random control steps. One JSON file a task; ``--table`` prints what they say.
"""

import argparse
import importlib
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import record, xla
from pomcp_jax import envs
from pomcp_jax.envs.protocol import Task

OUT = pathlib.Path("experiments/results/fidelity")
POLICIES = ("zero", "random", "wave")
EPISODES, RANDOM_EPISODES = 20, 100
"""Episodes of each policy; ours runs the random one for 100,000 control steps."""

EPISODE = {
    "finger": lambda physics: physics.target_position(),
    "fish": lambda physics: physics.named.data.geom_xpos["target"],
    "reacher": lambda physics: physics.named.model.geom_pos["target", :2],
    "swimmer": lambda physics: physics.named.model.geom_pos["target", :2],
}
"""What a domain draws per episode, read from dm_control's physics."""


def original(name: str, seed: int) -> Any:
    """The ``dm_control`` environment of that name."""
    domain, task = name.split("-")
    with warnings.catch_warnings():
        # Without a display, its rendering modules warn as they are imported.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"dm_control.suite.{domain}")
        return getattr(module, task)(random=seed)


def flat(observation: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in observation.values()])


def controls(reference: Any, action: np.ndarray) -> np.ndarray:
    """dm_control's controls for an action in [-1, 1]."""
    spec = reference.action_spec()
    low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
    return (high + low) / 2 + (high - low) / 2 * action


def blank_state(task: Task) -> Any:
    """A state of zeros: resetting may mean compiling the physics once more."""
    shapes = jax.eval_shape(task.reset, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def adopt(state: Any, physics: Any, domain: str) -> Any:
    """Our task state with dm_control's positions, velocities, activations and target."""
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
    """Of one control step from equal states, relative to numbers above one."""
    step_reward: float
    obs: dict[int, float]
    """After that many control steps from one equal state."""
    reward: dict[int, float]
    step_obs_median: float = 0.0
    """Of one control step: the median over steps of the largest entry."""


def deviation(
    name: str,
    episodes: int = 3,
    checkpoints: tuple[int, ...] = (1, 10, 100),
    also: tuple[str, ...] = (),
    backend: str = "mjx",
) -> Deviation:
    """Compare under uniform actions; ``also`` names tasks of the domain to compare rewards of."""
    domain = name.split("-")[0]
    task = envs.make_task(name, backend=backend)
    rewards = [task.reward] + [envs.make_task(other, backend=backend).reward for other in also]

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
    references = [original(name, seed=episode) for episode in range(episodes)]
    others = [original(other, seed=0).task for other in also]
    for reference in references:
        reference.reset()
    free = adopt_all()
    step_obs, step_reward = [], 0.0
    obs, reward = {}, {}
    for i in range(1, max(checkpoints) + 1):
        action = generator.uniform(-1, 1, (episodes, task.action_size)).astype(np.float32)
        tied = follow(adopt_all(), action)
        free, *seen = follow(free, action)
        answers = [
            reference.step(controls(reference, one.astype(np.float64)))
            for reference, one in zip(references, action, strict=True)
        ]
        true_obs = np.stack([flat(answer.observation) for answer in answers])
        true_reward = np.array(
            [
                [answer.reward] + [other.get_reward(reference.physics) for other in others]
                for answer, reference in zip(answers, references, strict=True)
            ]
        )
        scale = np.maximum(1.0, np.abs(true_obs))
        step_obs.append(np.max(np.abs(tied[1] - true_obs) / scale))
        step_reward = max(step_reward, np.max(np.abs(tied[2] - true_reward)))
        if i in checkpoints:
            obs[i] = float(np.max(np.abs(seen[0] - true_obs) / scale))
            reward[i] = float(np.max(np.abs(seen[1] - true_reward)))
    largest, median = float(np.max(step_obs)), float(np.median(step_obs))
    return Deviation(largest, float(step_reward), obs, reward, median)


class Resets(NamedTuple):
    """First observations of 1,000 episodes, ours against dm_control's."""

    mean: float
    """Largest difference of means, in standard errors of that difference."""
    spread: float
    """Largest ratio of standard deviations, less one, of entries that vary."""
    outside: float
    """Largest distance by which a range exceeds the other, in standard deviations."""
    constant: float
    """Largest difference of entries that never vary."""


def resets(name: str, count: int = 1000, backend: str = "mjx") -> Resets:
    """Compare first observations."""
    task = envs.make_task(name, backend=backend)
    keys = jax.random.split(jax.random.key(1), count)
    ours = np.asarray(jax.jit(jax.vmap(lambda key: task.observe(task.reset(key))))(keys))
    reference = original(name, seed=1)
    theirs = np.stack([flat(reference.reset().observation) for _ in range(count)])
    spread, other = theirs.std(axis=0), ours.std(axis=0)
    varies = np.maximum(spread, other) > 1e-6
    gap = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    error = np.sqrt((np.square(spread) + np.square(other)) / count)
    pooled = np.maximum(np.maximum(spread, other), 1e-12)
    beyond = np.maximum(
        ours.max(axis=0) - theirs.max(axis=0), theirs.min(axis=0) - ours.min(axis=0)
    )
    short = np.maximum(theirs.max(axis=0) - ours.max(axis=0), ours.min(axis=0) - theirs.min(axis=0))

    def most(values: np.ndarray, where: np.ndarray) -> float:
        return float(np.max(values[where])) if where.any() else 0.0

    return Resets(
        mean=most(gap / np.maximum(error, 1e-12), varies),
        spread=most(np.abs(np.log(np.maximum(other, 1e-12) / np.maximum(spread, 1e-12))), varies),
        outside=most(np.maximum(beyond, short) / pooled, varies),
        constant=most(gap, ~varies),
    )


def wave(steps: int, size: int) -> np.ndarray:
    """The hand controller: every motor a sine of one second, phases spread evenly."""
    phase = 2 * np.pi * np.arange(size) / size
    return np.sin(2 * np.pi * np.arange(steps)[:, None] / 50 + phase).astype(np.float32)


def their_returns(name: str, policy: str) -> list[float]:
    """Returns of :data:`EPISODES` episodes of a fixed policy in dm_control."""
    reference = original(name, seed=2)
    generator = np.random.default_rng(2)
    size = reference.action_spec().shape[0]
    found = []
    for _ in range(EPISODES):
        timestep, total = reference.reset(), 0.0
        steps = 0
        while not timestep.last():
            action = {
                "zero": lambda: np.zeros(size),
                "random": lambda: generator.uniform(-1, 1, size),
                "wave": lambda at=steps: wave(at + 1, size)[-1],
            }[policy]()
            timestep = reference.step(controls(reference, action))
            total, steps = total + timestep.reward, steps + 1
        found.append(total)
    return found


class Ours(NamedTuple):
    """Returns of our episodes by policy, and steps that gave non-finite numbers."""

    returns: dict[str, list[float]]
    invalid: int
    steps: int


def our_returns(name: str, backend: str = "mjx", chunk: int = 100) -> Ours:
    """All policies in one batch: the first rows zero, the next random, the last the wave."""
    task = envs.make_task(name, backend=backend)
    env = envs.make_env(task)
    rows = {"zero": EPISODES, "random": RANDOM_EPISODES, "wave": EPISODES}
    batch = sum(rows.values())
    waves = jnp.asarray(wave(task.episode_steps, task.action_size))

    @jax.jit
    def run(state: Any, key: jax.Array, at: jax.Array) -> tuple[Any, tuple]:
        def body(state: Any, i: jax.Array) -> tuple[Any, tuple]:
            shape = (rows["random"], task.action_size)
            noise = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0)
            quiet = jnp.zeros((rows["zero"], task.action_size), jnp.float32)
            swung = jnp.broadcast_to(waves[i], quiet.shape)
            action = jnp.concatenate([quiet, noise.astype(jnp.float32), swung])
            state, timestep = env.step(state, action)
            return state, (timestep.reward, timestep.invalid)

        return jax.lax.scan(body, state, at + jnp.arange(chunk))

    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(3), batch))
    total, invalid = np.zeros(batch), 0
    for at in range(0, task.episode_steps, chunk):
        state, (reward, bad) = run(state, jax.random.key(4), at)
        total += np.asarray(reward, np.float64).sum(axis=0)
        invalid += int(np.sum(bad))
    ends = np.cumsum(list(rows.values()))
    parts = np.split(total, ends[:-1])
    returns = {name: part.tolist() for name, part in zip(rows, parts, strict=True)}
    return Ours(returns, invalid, batch * task.episode_steps)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t, 19 or more degrees: 2.09)."""
    array = np.asarray(values)
    return float(array.mean()), float(2.09 * array.std(ddof=1) / len(array) ** 0.5)


def measure(name: str, backend: str, steps_only: bool) -> dict:
    """All comparisons of one task, as JSON."""
    start = time.perf_counter()
    found: dict[str, Any] = {"task": name, "backend": backend, **record.describe(sys.argv)}
    found["x64"] = bool(jax.config.jax_enable_x64)
    found["deviation"] = deviation(name, backend=backend)._asdict()
    if not steps_only:
        found["resets"] = resets(name, backend=backend)._asdict()
        ours = our_returns(name, backend=backend)
        found["invalid"], found["control_steps"] = ours.invalid, ours.steps
        found["returns"] = {
            policy: {
                "ours": interval(ours.returns[policy]),
                "dm_control": interval(their_returns(name, policy)),
            }
            for policy in POLICIES
        }
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def load(out: pathlib.Path) -> Iterator[dict]:
    for path in sorted(out.glob("*.json")):
        yield json.loads(path.read_text())


def steps_table(found: list[dict]) -> str:
    lines = [
        "| task | one step: obs | median | reward | 10 steps: obs | reward |"
        " 100 steps: obs | reward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        d = one["deviation"]
        values = [d["step_obs"], d["step_obs_median"], d["step_reward"]]
        values += [d[kind][at] for at in ("10", "100") for kind in ("obs", "reward")]
        lines.append(f"| {one['task']} | " + " | ".join(f"{v:.0e}" for v in values) + " |")
    return "\n".join(lines)


def overlap(one: dict) -> bool:
    (mean, half), (other, other_half) = one["ours"], one["dm_control"]
    return abs(mean - other) <= half + other_half + 1e-6


def returns_table(found: list[dict]) -> str:
    heads = "".join(f" {policy}: ours | dm_control |" for policy in POLICIES)
    lines = [f"| task | resets: mean | spread | range |{heads} non-finite |"]
    lines.append("|---|---|---|---|" + "---|---|" * len(POLICIES) + "---|")
    for one in found:
        if "returns" not in one:
            continue
        r = one["resets"]
        cells = [f"{r['mean']:.1f}", f"{r['spread']:.2f}", f"{r['outside']:.2f}"]
        for policy in POLICIES:
            pair = one["returns"][policy]
            text = [f"{mean:.1f} ± {half:.1f}" for mean, half in pair.values()]
            cells += text if overlap(pair) else [f"**{cell}**" for cell in text]
        cells.append(f"{one['invalid']} of {one['control_steps']}")
        lines.append(f"| {one['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--backend", choices=("mjx", "host"), default="mjx")
    parser.add_argument("--steps-only", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    if args.table:
        found = list(load(args.out))
        print(steps_table(found), returns_table(found), sep="\n\n")
        return
    names = args.tasks or envs.dm_control_tasks(extra=False)
    for name in names:
        envs.check_name(name)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = measure(name, args.backend, args.steps_only)
        found = json.loads(json.dumps(found))
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(steps_table([found]).splitlines()[-1], flush=True)
        if not args.steps_only:
            print(returns_table([found]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
