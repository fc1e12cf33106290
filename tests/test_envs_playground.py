"""MuJoCo Playground's environments as tasks."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax.envs.adapters import playground
from pomcp_jax.envs.protocol import make_env

if not playground.names():
    pytest.skip('not installed: pip install "pomcp_jax[playground]"', allow_module_level=True)

with playground._loose():
    from mujoco_playground import registry
    from mujoco_playground._src import mjx_env

BATCH = 3


def one_line(kind, pattern, call):
    with pytest.raises(kind, match=pattern) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def rollout(env, actions, seed=0):
    """States before and after, and time steps ``[T + 1, B, ...]`` under ``actions[T, B, A]``."""
    keys = jax.random.split(jax.random.key(seed), actions.shape[1])
    before, first = jax.jit(env.reset)(keys)
    after, rest = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(before, actions)
    return before, after, jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, rest)


@pytest.fixture(scope="module")
def task():
    return playground.make("PendulumSwingup", episode_length=3)


# The real thing


def test_episodes_are_make_envs(task):
    assert (task.name, task.episode_steps) == ("playground/PendulumSwingup", 3)
    actions = jax.random.uniform(jax.random.key(1), (8, BATCH, 1), minval=-1, maxval=1)
    before, after, steps = rollout(make_env(task), actions)
    describe = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert describe(before) == describe(after)
    assert steps.obs.shape == (9, BATCH, task.observation_size) and steps.obs.dtype == np.float32
    assert all(np.isfinite(x).all() for x in steps) and not steps.invalid.any()
    assert not steps.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated[:, 0]), [3, 7])
    first = steps.obs[steps.is_first]
    assert len(first) == 3 * BATCH and len(np.unique(first.round(5), axis=0)) == len(first)

    # The same episode in Playground itself; make_env resets with the key's second half.
    env = registry.load("PendulumSwingup", config_overrides={"impl": "jax"})
    keys = jax.random.split(jax.random.key(0), BATCH)
    with playground._loose():
        state = jax.jit(jax.vmap(lambda key: env.reset(jax.random.split(key)[1])))(keys)
        step = jax.jit(jax.vmap(env.step))
        for t in range(3):
            np.testing.assert_allclose(steps.obs[t], state.obs, atol=1e-5)
            state = step(state, actions[t])
            np.testing.assert_allclose(steps.reward[t + 1], state.reward, atol=1e-5)
    np.testing.assert_allclose(steps.obs[3], state.obs, atol=1e-5)


def test_it_is_quiet_starts_no_warp_and_traces_under_x64():
    # MuJoCo's C code has a remark about the model of CheetahRun.
    code = """
import jax, jax.numpy as jnp
from pomcp_jax.envs.adapters import playground
task = playground.make("CheetahRun")
state = jax.eval_shape(task.reset, jax.random.key(0))
after = jax.eval_shape(task.step, state, jnp.zeros(task.action_size, jnp.float32))
assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(after)]
import warp
assert warp._src.context.runtime is None
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# Errors


def test_unknown_names_get_the_nearest():
    message = one_line(ValueError, "playground/CheetaRun", lambda: playground.make("CheetaRun"))
    assert "CheetahRun" in message
    one_line(ValueError, "'playground/'", lambda: playground.make(""))


def test_names_and_action_repeats_are_the_registrys():
    assert playground.names() == tuple(registry.ALL_ENVS)
    assert playground.action_repeat("CheetahRun") == 1
    assert playground.action_repeat("PandaRobotiqPushCube") == 4


def test_without_playground(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    assert playground.names() == ()
    wanted = r'pip install "pomcp_jax\[playground\]"'
    one_line(ModuleNotFoundError, wanted, lambda: playground.make("CheetahRun"))


@pytest.mark.parametrize("name", ["Go1Getup", "PandaPickCube"])
def test_robots_are_not_downloaded(name, monkeypatch, tmp_path):
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "none")
    monkeypatch.setattr(mjx_env, "ensure_menagerie_exists", lambda: pytest.fail("a download"))
    one_line(FileNotFoundError, f"{name} needs mujoco_menagerie", lambda: playground.make(name))


def test_environments_that_do_not_load_say_why(monkeypatch):
    def fail(name, config):
        raise AttributeError("no\nsuch thing")

    monkeypatch.setattr(registry, "load", fail)
    wanted = r"playground/CheetahRun does not load under mujoco [\d.]+: no such thing"
    one_line(RuntimeError, wanted, lambda: playground.make("CheetahRun"))


@pytest.mark.parametrize("bad", [{"nonsense": 3}, {"episode_length": "x"}, {"impl": 3}])
def test_bad_settings_are_named(bad):
    wanted = f"playground/CheetahRun refuses .*{next(iter(bad))}"
    message = one_line(ValueError, wanted, lambda: playground.make("CheetahRun", **bad))
    assert len(message) < 200


# What the real ones above do not show


class Odd:
    """Pendulum's model with a dictionary for its observation and actions that end or break it."""

    def __init__(self, entry):
        self.env = registry.load("PendulumSwingup", config_overrides={"impl": "jax"})
        self.entry = entry

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, key):
        state = self.env.reset(key)
        info = {"key": key, "reached": 0.0, "steps": 0}
        obs, metrics = {self.entry: state.obs, "other": state.obs[:2]}, {"over": jnp.zeros(())}
        return state.replace(obs=obs, info=info, metrics=metrics)

    def step(self, state, action):
        broken, over = action[0] > 0.9, action[0] > 0.5
        data = state.data.replace(qvel=jnp.where(broken, jnp.nan, state.data.qvel))
        state.info["steps"] += 1
        state.info["reached"] = over.astype(float)
        state.metrics["over"] = over.astype(float)
        obs = {self.entry: state.obs["state"] + action, "other": jnp.zeros(2)}
        reward = 10.0 * state.info["steps"]
        done = over | broken
        return state.replace(data=data, obs=obs, reward=reward, done=done)


@pytest.fixture
def odd(monkeypatch):
    def load(entry):
        env = Odd(entry)
        monkeypatch.setattr(registry, "load", lambda name, config: env)
        return playground.make("PendulumSwingup")

    return load


@pytest.mark.parametrize("repeat", [1, 2])
def test_broken_physics_is_masked_and_an_end_is_not(odd, repeat):
    # Row 0 ends at its second decision; row 1 breaks there, with a finite reward and observation.
    actions = jnp.zeros((4, BATCH, 1)).at[1, 0].set(0.6).at[1, 1].set(0.95)
    _, _, steps = rollout(make_env(odd("state"), repeat), actions)
    assert all(np.isfinite(x).all() for x in steps)
    np.testing.assert_array_equal(steps.terminated[:, 0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(steps.is_first[:, 0], [1, 0, 0, 1, 0])
    np.testing.assert_allclose(steps.obs[2, 0], steps.obs[1, 0] + 0.6, atol=1e-6)
    np.testing.assert_array_equal(steps.invalid[:, 1], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(steps.is_first[:, 1], [1, 0, 1, 0, 0])
    total = [10, 20] if repeat == 1 else [30, 30]
    np.testing.assert_array_equal(steps.reward[1:3, 0], total)
    assert steps.reward[2, 1] == 0 and not steps.terminated[:, 1:].any()
    assert not steps.invalid[:, [0, 2]].any()


def test_what_playground_writes_stays_in_its_copy(odd):
    task = odd("state")
    state = jax.jit(task.reset)(jax.random.key(0))
    after = task.step(state, jnp.ones(1))
    assert (after.info["steps"], after.metrics["over"]) == (1, 1)
    assert (state.info["steps"], state.metrics["over"]) == (0, 0)


def test_no_flat_observation_is_an_error(odd):
    wanted = "playground/PendulumSwingup has no flat observation but .*pixels"
    one_line(ValueError, wanted, lambda: odd("pixels"))
