"""Our dm_control tasks against dm_control itself.

In float64 the two agree to rounding, which no difference of physics, reward or
observation would survive; in float32 they agree to float32's rounding.
"""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.dm_control import original
from experiments.benchmarks.fidelity import adopt, blank_state, deviations
from pomcp_jax import envs

EXACT = {
    "acrobot-swingup": ("acrobot-swingup_sparse",),
    "ball_in_cup-catch": (),
    "cartpole-balance": ("cartpole-balance_sparse",),
    "cartpole-swingup": ("cartpole-swingup_sparse",),
    "cheetah-run": (),
    "finger-turn_easy": (),
    "fish-swim": (),
    "hopper-hop": ("hopper-stand",),
    "pendulum-swingup": (),
    "point_mass-easy": (),
    "reacher-easy": (),
    "walker-run": ("walker-walk", "walker-stand"),
}
"""A task of each domain, with those whose rewards are computed from the same states."""


@pytest.mark.parametrize("name", EXACT)
def test_tasks_are_exact_in_float64(name):
    with jax.enable_x64(True):
        measured = deviations([name, *EXACT[name]], episodes=3)
    for found in measured.values():
        assert max(found.step_obs, found.step_reward) < 1e-9
        for steps, bound in ((1, 1e-10), (10, 1e-10), (100, 1e-6)):
            assert found.obs[steps] < bound and found.reward[steps] < bound


def test_quadruped_is_exact_in_float64():
    with jax.enable_x64(True):
        measured = deviations(["quadruped-run", "quadruped-walk"], checkpoints=(40,))
    for found in measured.values():
        assert max(found.step_obs, found.step_reward, found.obs[40], found.reward[40]) < 1e-9


def test_humanoid_is_exact_in_float64():
    with jax.enable_x64(True):
        measured = deviations(["humanoid-run", "humanoid-stand"], checkpoints=(30,))
    # MuJoCo's own solver stops at a tolerance: what is left of two steps in a hundred.
    for found in measured.values():
        assert found.step_obs_median < 1e-10 and max(found.step_obs, found.step_reward) < 1e-4


@pytest.mark.parametrize("name", ["cartpole-swingup", "pendulum-swingup", "reacher-hard"])
def test_float32_differs_by_rounding(name):
    found = deviations([name], episodes=2, checkpoints=(100,))[name]
    assert found.step_obs < 3e-6 and found.step_reward < 1e-6
    assert found.obs[100] < 3e-5 and found.reward[100] < 1e-5


def first_states(name, count=2000):
    task = envs.make_task(name)
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), count))
    return states, jax.jit(jax.vmap(task.observe))(states)


@pytest.mark.parametrize(
    "name",
    [
        "acrobot-swingup",
        "ball_in_cup-catch",
        "cartpole-balance",
        "cartpole-swingup",
        "finger-spin",
        "fish-swim",
        "hopper-hop",
        "pendulum-swingup",
        "reacher-easy",
        "walker-walk",
    ],
)
def test_first_states_are_distributed_as_there(name, count=400):
    states, _ = first_states(name)
    ours = np.concatenate([states.qpos, states.qvel], axis=1)
    reference = original(name, seed=0)
    theirs = []
    for _ in range(count):
        reference.reset()
        theirs.append(np.concatenate([reference.physics.data.qpos, reference.physics.data.qvel]))
    mean, spread = np.mean(theirs, axis=0), np.std(theirs, axis=0)
    # Five standard errors of the smaller sample; what never varies there must not here.
    assert np.all(np.abs(ours.mean(axis=0) - mean) < 1e-5 + 5 * spread / count**0.5)
    np.testing.assert_allclose(ours.std(axis=0), spread, rtol=0.15, atol=1e-5)


def test_reacher_draws_its_target_as_there():
    states, obs = first_states("reacher-easy")
    radius = np.linalg.norm(states.episode, axis=1)
    assert 0.05 <= radius.min() < 0.055 and 0.195 < radius.max() <= 0.2
    assert abs(radius.mean() - 0.125) < 0.004
    assert np.abs(np.mean(states.episode, axis=0)).max() < 0.01
    reference = original("reacher-easy", seed=0)
    there = reference.reset().observation
    task = envs.make_task("reacher-easy")
    state = adopt(blank_state(task), reference.physics, "reacher")
    ours = jax.jit(lambda state: task.observe(task.step(state, jnp.zeros(2))))(state)
    there = np.concatenate([np.ravel(x) for x in reference.step(np.zeros(2)).observation.values()])
    np.testing.assert_allclose(ours, there, atol=1e-6)
    assert obs.shape == (2000, 6)


class Given:
    """Stands in for dm_control's random state and returns what we drew."""

    def __init__(self, draw):
        self.draw = draw

    def uniform(self, low, high):
        return self.draw


def test_cheetah_settles_as_there():
    with jax.enable_x64(True):
        task = envs.make_task("cheetah-run")
        key = jax.random.key(3)
        ours = jax.jit(task.reset)(key)
        reference = original("cheetah-run", seed=0)
        model = reference.physics.model
        low, high = np.asarray(model.jnt_range, np.float32).T
        drawn = jax.random.uniform(key, (model.nq,), minval=low, maxval=high)
        reference.task._random = Given(np.asarray(drawn)[model.jnt_limited == 1])
        there = reference.reset().observation
        there = np.concatenate([np.ravel(x) for x in there.values()])
        np.testing.assert_allclose(task.observe(ours), there, atol=1e-7)
        np.testing.assert_allclose(
            task.reward(ours), reference.task.get_reward(reference.physics), atol=1e-9
        )
