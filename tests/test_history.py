"""Observations of several decisions: environments, evaluation's loop and controllers agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, agent, envs, train
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.controller import Controller
from pomcp_jax.envs import history
from pomcp_jax.running import functions

K, BATCH, STEPS = 3, 2, 14


def played(env):
    """Observations, first flags and states of a few episodes, with actions that break some."""
    actions = np.random.default_rng(0).uniform(-1, 1, size=(STEPS, BATCH, env.action_size))
    state, timestep = jax.jit(env.reset)(jax.random.split(jax.random.key(0), BATCH))
    out, step = [timestep], jax.jit(env.step)
    for action in actions:
        state, timestep = step(state, jnp.asarray(action, jnp.float32))
        out.append(timestep)
    return jax.tree.map(lambda *x: np.stack(x), *out), state


@pytest.mark.parametrize("name", ["probe/truncated", "probe/nan"])
def test_an_episode_is_that_of_a_loop(name):
    """Everything but the observations is the environment's own, resets and breaks included."""
    own, state = played(envs.make(name))
    many, stacked = played(history.stacked(envs.make(name), K))
    for field in own._fields:
        if field != "obs":
            np.testing.assert_array_equal(getattr(own, field), getattr(many, field))
    assert own.is_first[1:].any() and (name != "probe/nan" or own.invalid.any())
    for b in range(BATCH):
        first = 0
        for t in range(STEPS + 1):
            first = t if own.is_first[t, b] else first
            want = [own.obs[max(t - lag, first), b] for lag in (2, 1, 0)]
            np.testing.assert_array_equal(many.obs[t, b], np.concatenate(want))
    jax.tree.map(np.testing.assert_array_equal, state.task, stacked.task)


def test_stacking_twice_is_refused_and_once_is_enough():
    env = envs.make("probe/truncated")
    assert history.stacked(env, 1) is env
    many = history.stacked(env, K)
    assert (many.observation_size, many.history) == (K, K) and history.stacked(many, K) is many
    with pytest.raises(
        ConfigError, match=r"env.history = 2: environment 'probe/trunc.* made with 3"
    ):
        history.stacked(many, 2)
    with pytest.raises(ConfigError, match=r"env.history = 1: .* with 3; must be the same"):
        train.check_environment(Config(), many._replace(action_repeat=2))


def test_runs_and_environments_of_ones_own_are_stacked():
    config = tiny.run(env__history=K)
    assert functions.environment(config).observation_size == K
    own = envs.make("probe/truncated")
    assert functions.build(config, own).program.spec.obs_size == K


def test_a_controller_takes_single_observations():
    """Its actions are those of the agent at the observations that a loop puts side by side."""
    config = tiny.run(env__history=K)
    spec = acting.build(config.agent, K * 2, 1)
    params = agent.init(jax.random.key(0), config.agent, spec).params
    robot = Controller(params, config, spec, actor="policy")
    assert (robot.observation_size, robot.history) == (2, K)
    obs = np.random.default_rng(0).normal(size=(4, BATCH, 2)).astype(np.float32)
    act = jax.jit(
        lambda seen: acting.act_policy(
            params, jax.random.key(0), seen, spec=spec, config=config.agent, explore=0.0
        )
    )
    for _ in range(2):  # reset() forgets
        robot.reset()
        for t, x in enumerate(obs):
            seen = np.concatenate([obs[max(t - lag, 0)] for lag in (2, 1, 0)], axis=1)
            np.testing.assert_allclose(robot.act(x), act(seen), atol=1e-6)
    with pytest.raises(ValueError, match=r"must be \[2\] or \[N, 2\]"):
        robot.act(np.zeros(K * 2))
