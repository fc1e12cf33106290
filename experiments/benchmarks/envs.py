"""Speed and fidelity of the dm_control tasks, as markdown tables.

    python -m experiments.benchmarks.envs [task ...]               # speed
    python -m experiments.benchmarks.envs --fidelity [task ...]    # against dm_control
    JAX_ENABLE_X64=1 python -m experiments.benchmarks.envs --fidelity [task ...]

Speed is measured inside one ``lax.scan`` under random actions, resets included.
Fidelity runs dm_control itself beside our tasks under equal actions.
"""

import argparse
import importlib
import statistics
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import envs
from pomcp_jax.envs.protocol import Task


class Speed(NamedTuple):
    """One measurement."""

    compile_s: float
    step_ms: float


def speed(name: str, batch: int, steps: int = 100, runs: int = 5) -> Speed:
    """Seconds to compile a scan of ``steps`` control steps, and milliseconds of one of them."""
    env = envs.make(name)

    @jax.jit
    def run(state: envs.EnvState, key: jax.Array) -> tuple[envs.EnvState, jax.Array]:
        def body(now: envs.EnvState, key: jax.Array) -> tuple[envs.EnvState, jax.Array]:
            shape = (batch, env.action_size)
            now, timestep = env.step(now, jax.random.uniform(key, shape, minval=-1, maxval=1))
            return now, timestep.reward

        return jax.lax.scan(body, state, jax.random.split(key, steps))

    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), batch))
    start = time.perf_counter()
    compiled = run.lower(state, jax.random.key(0)).compile()
    compile_s = time.perf_counter() - start
    times = []
    for i in range(runs + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, jax.random.key(i)))
        times.append(time.perf_counter() - start)
    return Speed(compile_s, 1e3 * statistics.median(times[1:]) / steps)


def original(name: str, seed: int) -> Any:
    """The ``dm_control`` environment of that name."""
    domain, task = name.split("-")
    with warnings.catch_warnings():
        # Without a display, its rendering modules warn as they are imported.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"dm_control.suite.{domain}")
        return getattr(module, task)(random=seed)


def adopt(state: Any, physics: Any) -> Any:
    """Our task state with the positions, velocities and target of dm_control's physics."""
    real = state.qpos.dtype
    episode = state.episode
    if episode is not None:
        target = physics.named.model.geom_pos["target", :2]
        episode = episode._replace(position=jnp.asarray(np.array(target), real))
    return state._replace(
        qpos=jnp.asarray(physics.data.qpos.copy(), real),
        qvel=jnp.asarray(physics.data.qvel.copy(), real),
        episode=episode,
    )


def blank_state(task: Task) -> Any:
    """A state of zeros: resetting may mean compiling the physics once more."""
    shapes = jax.eval_shape(task.reset, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


class Deviation(NamedTuple):
    """Largest differences between our task and dm_control."""

    step_obs: float
    """Of one control step from equal states, relative to numbers above one."""
    step_reward: float
    obs: dict[int, float]
    """After that many control steps from one equal state."""
    reward: dict[int, float]


def deviation(
    name: str,
    episodes: int = 3,
    checkpoints: tuple[int, ...] = (1, 10, 100),
    also: tuple[str, ...] = (),
) -> Deviation:
    """Compare under uniform actions; ``also`` names tasks of the domain to compare rewards of."""
    task = envs.make_task(name)
    rewards = [task.reward] + [envs.make_task(other).reward for other in also]

    @jax.jit
    def follow(state: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        state = task.step(state, action)
        return state, task.observe(state), jnp.stack([reward(state) for reward in rewards])

    generator = np.random.default_rng(0)
    step_obs, step_reward = 0.0, 0.0
    obs, reward = dict.fromkeys(checkpoints, 0.0), dict.fromkeys(checkpoints, 0.0)
    blank = blank_state(task)
    for episode in range(episodes):
        reference = original(name, seed=episode)
        others = [original(other, seed=episode).task for other in also]
        reference.reset()
        free = adopt(blank, reference.physics)
        for i in range(1, max(checkpoints) + 1):
            action = generator.uniform(-1, 1, task.action_size).astype(np.float32)
            tied = follow(adopt(blank, reference.physics), action)
            free, *seen = follow(free, action)
            answer = reference.step(action.astype(np.float64))
            true_obs = np.concatenate([np.ravel(x) for x in answer.observation.values()])
            true_reward = [answer.reward] + [o.get_reward(reference.physics) for o in others]
            scale = np.maximum(1.0, np.abs(true_obs))
            step_obs = max(step_obs, np.max(np.abs(tied[1] - true_obs) / scale))
            step_reward = max(step_reward, np.max(np.abs(tied[2] - np.array(true_reward))))
            if i in checkpoints:
                obs[i] = max(obs[i], np.max(np.abs(seen[0] - true_obs) / scale))
                reward[i] = max(reward[i], np.max(np.abs(seen[1] - np.array(true_reward))))
    return Deviation(float(step_obs), float(step_reward), obs, reward)


def speed_table(names: list[str], batches: tuple[int, ...]) -> None:
    print("| task | compile s |" + "".join(f" B={b}, ms |" for b in batches), flush=True)
    print("|---|---|" + "---|" * len(batches))
    for name in names:
        rows = [speed(name, batch) for batch in batches]
        compile_s = statistics.median(row.compile_s for row in rows)
        cells = "".join(f" {row.step_ms:.3g} |" for row in rows)
        print(f"| {name} | {compile_s:.0f} |{cells}", flush=True)


def fidelity_table(names: list[str]) -> None:
    print("| task | one step: obs | reward | 10 steps: obs | reward | 100 steps: obs | reward |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        d = deviation(name)
        values = (d.step_obs, d.step_reward, d.obs[10], d.reward[10], d.obs[100], d.reward[100])
        print(f"| {name} | " + " | ".join(f"{v:.0e}" for v in values) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--fidelity", action="store_true")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 128])
    args = parser.parse_args()
    names = args.tasks or [name for name in envs.available() if "/" not in name]
    if args.fidelity:
        fidelity_table(names)
    else:
        speed_table(names, tuple(args.batches))


if __name__ == "__main__":
    main()
