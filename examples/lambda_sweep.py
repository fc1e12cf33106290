"""Train several strengths of the KL term, the paper's lambda, as one vmapped program.

    python examples/lambda_sweep.py [--decisions 1000] [--values 0.1 1 9]

The strength is a traced number of the configuration, so all values share one compilation; each is
trained with the same seed. ``experiments.sweep`` does the same from the command line, with tables,
pictures and checkpoints.
"""

import argparse

import jax
import jax.numpy as jnp

from pomcp_jax import Config, Task, config, evaluate, make_env, presets, train

TASK = Task(
    name="reach",
    reset=lambda key: jax.random.uniform(key, (1,), minval=-1.0),
    step=lambda x, action: jnp.clip(x + 0.2 * action, -1.0, 1.0),
    observe=lambda x: x,
    reward=lambda x: 1.0 - jnp.sum(jnp.abs(x)),
    terminated=lambda x: jnp.zeros((), bool),
    observation_size=1,
    action_size=1,
    episode_steps=20,
)
SMALL = {
    "mppi.num_samples": 64, "mppi.num_elites": 8, "mppi.num_proposals": 8, "mppi.iterations": 2,
    "optimizer.batch_size": 64, "world_model.latent_size": 32, "world_model.mlp_width": 32,
}  # fmt: skip


def main():
    """Print, for every strength, how good the bare policy is and how close to the planner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1000, help="of every agent")
    parser.add_argument("--values", type=float, nargs="+", default=[0.1, 1.0, 9.0])
    args = parser.parse_args()
    num = len(args.values)
    agent = config.replace(presets.with_size(presets.po_mpc(lambda_=1.0), "tiny"), SMALL)
    settings = config.replace(Config(agent=agent), {
        "agent.policy.kl_coef": jnp.array(args.values), "train.num_seeds": num,
        "env.task": "reach", "env.action_repeat": 1, "train.total_decisions": args.decisions,
        "train.seed_decisions": 100, "train.pretrain_updates": 100, "train.capacity": 2_000,
    })  # fmt: skip
    program = train.build(settings, make_env(TASK))
    # The same seed for all, so that they differ by their strength alone.
    state = program.init(settings, jnp.zeros(num, jnp.int32))
    for work in [*program.seeding, *program.pretraining, *program.training]:
        state, metrics = program.chunk(state, settings, work)
    keys = jax.random.split(jax.random.key(1), num)
    played = evaluate.rollout(
        state.agent.params, keys, env=program.env, spec=program.spec, config=settings.agent,
        episodes=20, planner=False,
    )  # fmt: skip
    for row, value in enumerate(args.values):
        text = f"policy's return {played.returns[row].mean():.1f} of 20"
        print(f"lambda {value:g}: {text}, KL to the prior {metrics['policy/kl'][row]:.2f} nats")


if __name__ == "__main__":
    main()
