"""HumanoidBench's tasks: a small model everywhere, the real ones where a checkout is."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

from pathlib import Path

import humanoid_small
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pomcp_jax import envs
from pomcp_jax.envs.humanoid_bench import models, rewards, tasks

STEPS, BATCH = 40, 3
SHARED = Path(__file__).parent.parent.parent / "shared" / "humanoid_bench"


@pytest.fixture(scope="session")
def checkout():
    """Folder of HumanoidBench's models."""
    folder = os.environ.get(models.VARIABLE) or (str(SHARED) if SHARED.is_dir() else "")
    try:
        return str(models.find(folder))
    except FileNotFoundError:
        pytest.skip("no assets")


def play(task, state, actions):
    """Observations, rewards and ends of ``actions[T, B, A]`` without resets."""

    def step(state, action):
        state = jax.vmap(task.step)(state, action)
        seen = (jax.vmap(f)(state) for f in (task.observe, task.reward, task.terminated))
        return state, tuple(seen)

    return jax.jit(lambda s, a: jax.lax.scan(step, s, a))(state, actions)[1]


def exact(state):
    """The float64 state ``[B, ...]``: time, positions, velocities, warm start."""
    return np.ascontiguousarray(np.asarray(state.motion.hidden)).view(np.float64).copy()


def with_exact(state, values):
    return state._replace(motion=state.motion._replace(hidden=jnp.asarray(values.view(np.uint32))))


def near(ours, theirs):
    """Within 1e-6, relative for numbers above one: those are float32."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", humanoid_small.TASKS)
def test_rewards_and_ends_are_those_of_a_plain_loop(name):
    spec = humanoid_small.spec(name)
    task = tasks.build(f"humanoid/small-{name}", name, spec)
    state = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), BATCH))
    actions = jax.random.uniform(jax.random.key(1), (STEPS, BATCH, 4), minval=-1, maxval=1)
    model = mujoco.MjModel.from_xml_string(humanoid_small.xml(name))
    first, full = jax.vmap(task.observe)(state), exact(state)
    # Row 0 stands, row 1 is pushed over to the front and row 2 to the back and the left.
    full[1:, 1 + model.nq : 7 + model.nq] = [2, 0, 0, 0, 3, 0], [-1.5, 1, 0, -1, -3, 0]
    state = with_exact(state, full)
    goals = state.episode[:, None] if name == "reach" else [()] * BATCH
    parts = full[:, 1 : 1 + model.nq], full[:, 1 + model.nq : 1 + model.nq + model.nv]
    plain = [humanoid_small.Plain(name, model, *p, *g) for *p, g in zip(*parts, goals, strict=True)]
    np.testing.assert_allclose(first[0], plain[0].obs(), rtol=1e-6, atol=1e-6)
    obs, reward, ended = play(task, state, actions)
    seen = []
    for t in range(STEPS):
        near(reward[t], [row.step(a) for row, a in zip(plain, actions[t], strict=True)])
        near(obs[t], [row.obs() for row in plain])
        assert [bool(x) for x in ended[t]] == [row.terminated() for row in plain]
        seen += [(row.discounted, row.terminated()) for row in plain]
    assert obs.shape[-1] == task.observation_size == first.shape[-1]
    # Contacts that cost were made and not made, and an end came; otherwise nothing was compared.
    costly, over = ({pair[i] for pair in seen} for i in range(2))
    assert costly == ({True, False} if name in ("hurdle", "maze", "pole") else {False})
    assert over == ({False} if name in ("reach", "crawl") else {True, False})
