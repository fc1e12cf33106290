"""A tiny training, an evaluation and a plan with every annotation of the package checked.

Run by tests/test_annotations.py in a separate process: the hook only affects modules that are
not imported yet.
"""

import dataclasses
import sys

import jaxtyping

jaxtyping.install_import_hook("pomcp_jax", "beartype.beartype")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import tiny  # noqa: E402

from pomcp_jax import MppiConfig, envs, evaluate, mppi, train  # noqa: E402
from pomcp_jax import diagnostics as diagnostics_lib  # noqa: E402
from pomcp_jax.mppi import ModelFns  # noqa: E402


def run(preset, task, **changes):
    """One chunk of every kind, and an evaluation of both actors with diagnostics."""
    config = tiny.run(preset, env__task=task, train__total_decisions=30, **changes)
    env = envs.make(task)
    program = train.build(config, env)
    state = program.init(config)
    for work in (program.seeding[0], program.pretraining[0], program.training[0]):
        state, means = program.chunk(state, config, work)
    options = dict(env=env, spec=program.spec)
    # Traced only: annotations are checked during tracing.
    jax.eval_shape(lambda s: diagnostics_lib.evaluate_run(s, config, **options), state)
    keys = jax.random.split(jax.random.key(0), config.train.num_seeds)
    options |= dict(config=config.agent, episodes=2, planner=False)
    jax.eval_shape(lambda p: evaluate.rollout(p, keys, **options), state.agent.params)


def plan():
    """The planner alone, with traced numbers, and with all options for robots."""

    def step(params, x, action):
        x = x + 0.1 * jnp.stack([x[1], action[0]])
        return x, -jnp.sum(x**2), jnp.ones(())

    model = ModelFns(step, lambda params, key, x: -10.0 * jnp.sum(x**2))
    config = MppiConfig(num_samples=16, num_proposals=0, num_elites=4, iterations=2)
    robot = dataclasses.replace(
        config, low=-2.0, std_init=0.5, noise_correlation=0.5, knots=2, action_rate_cost=0.1
    )
    keys = jax.random.split(jax.random.key(0), 3)
    for settings in (config, robot):

        def one(key, x, temperature, settings=settings):
            changed = dataclasses.replace(settings, temperature=temperature)
            start = mppi.init(changed, 1)
            out, _ = mppi.imagine(None, key, x, start, model=model, config=changed)
            return out, mppi.shift(out, 2)

        out, later = jax.eval_shape(jax.vmap(one), keys, jnp.zeros((3, 2)), jnp.ones(3))
        assert out.action.shape == (3, 1) and later.mean.shape == (3, 3, 1)


if __name__ == "__main__":
    cases = {
        "po_mpc": lambda: run("po_mpc", "probe/truncated"),
        "bmpc": lambda: run("bmpc", "probe/lqr", train__num_seeds=2),
        "plan": plan,
    }
    for name in sys.argv[1:]:
        cases[name]()
        print(name, "ok")
