"""Transfer to dm_control: returns of an agent on MJX, on the host engine and in dm_control itself.

    python -m experiments.benchmarks.transfer RUN_WORKDIR [--episodes 20] [--out DIR]

Restores the newest checkpoint of a run on a dm_control task. Its planner, without exploration
noise, plays whole episodes on MJX, on the host backend (MuJoCo's C code) and in dm_control's own
Python environment with the run's action repeat. Prints mean returns with 95 % intervals; ``--out``
also writes a JSON file.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import streams, xla
from experiments.benchmarks.dm_control import controls, flat, original
from pomcp_jax import acting, checkpoint, envs, evaluate, files
from pomcp_jax.checkpoint import CheckpointError, Restored
from pomcp_jax.reporting import statistics
from pomcp_jax.running import process

SEED = 1000
"""Seed of episodes and plans; far from the seeds of training."""


def ours(agent: Restored, backend: str, episodes: int) -> list[float]:
    """Returns on one of our backends, of all seeds of the run."""
    config = agent.config
    env = envs.make(config.env.task, config.env.action_repeat, backend)
    keys = jax.random.split(jax.random.key(SEED), agent.num_seeds)

    @jax.jit
    def play(params: Any) -> evaluate.Episodes:
        return evaluate.rollout(
            params, keys, env=env, spec=agent.spec, config=config.agent, episodes=episodes
        )

    return np.asarray(play(agent.state.params).returns).ravel().tolist()


def theirs(agent: Restored, episodes: int) -> list[float]:
    """Returns in dm_control, of all seeds of the run; each episode has its own environment."""
    config, spec = agent.config, agent.spec
    returns = []
    for seed in range(agent.num_seeds):
        params = jax.tree.map(lambda x, i=seed: x[i], agent.state.params)

        @jax.jit
        def act(params: Any, key: jax.Array, obs: jax.Array, plan: Any, first: jax.Array):
            return acting.act(
                params, key, obs, plan, first, spec=spec, config=config.agent, explore=0.0
            )

        first = SEED + 100 * seed
        environments = [original(config.env.task, seed=first + i) for i in range(episodes)]
        steps = [env.reset() for env in environments]
        plan = acting.init_plan(config.agent, spec, episodes)
        total, decision = np.zeros(episodes), 0
        while not steps[0].last():
            obs = jnp.asarray(np.stack([flat(step.observation) for step in steps]), jnp.float32)
            key = jax.random.fold_in(jax.random.key(SEED + seed), decision)
            out = act(params, key, obs, plan, jnp.full(episodes, decision == 0))
            plan, actions = out.next_state, np.asarray(out.action, np.float64)
            for i, (env, action) in enumerate(zip(environments, actions, strict=True)):
                for _ in range(config.env.action_repeat):
                    if not steps[i].last():
                        steps[i] = env.step(controls(env, action))
                        total[i] += steps[i].reward
            decision += 1
        returns += total.tolist()
    return returns


def main() -> int:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="workdir of experiments.run")
    parser.add_argument("--episodes", type=int, default=20, help="number per seed (default 20)")
    parser.add_argument("--out", type=pathlib.Path, help="folder for a JSON file")
    args = parser.parse_args()
    if args.episodes < 2:
        print(f"error: --episodes = {args.episodes}: must be >= 2", file=sys.stderr)
        return 2
    try:
        agent = checkpoint.restore(args.run / "checkpoints")
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = agent.config
    if config.env.task not in envs.dm_control_tasks(extra=False):
        print(f"error: {config.env.task}: must be a task of dm_control", file=sys.stderr)
        return 2
    start = time.perf_counter()
    result = process.describe(process.command("experiments.benchmarks.transfer", sys.argv)) | {
        "task": config.env.task,
        "trained_on": config.env.backend,
        "decisions": agent.decisions,
        "frames": agent.decisions * config.env.action_repeat,
        "episodes": args.episodes,
    }
    returns = {backend: ours(agent, backend, args.episodes) for backend in ("mjx", "host")}
    returns["dm_control"] = theirs(agent, args.episodes)
    print("| task | " + " | ".join(returns) + " |\n|---|" + "---|" * len(returns))
    intervals = map(statistics.mean_and_half, returns.values())
    cells = [f"{mean:.1f} ± {half:.1f}" for mean, half in intervals]
    print(f"| {config.env.task} | " + " | ".join(cells) + " |", flush=True)
    result |= {"returns": returns, "seconds": round(time.perf_counter() - start, 1)}
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        files.write_json(args.out / f"{config.env.task}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
