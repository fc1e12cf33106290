"""The README's python blocks run unchanged, and it names things that exist."""

import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import tiny

from experiments.configs import quickstart
from pomcp_jax import acting, agent, checkpoint
from pomcp_jax import config as config_lib

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
TRAINER, CONTROLLER, MODEL, PLANNER = BLOCKS


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Turn this suite's strict modes off, and on again after the test."""
    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def test_planner_block():
    scope = {}
    exec(PLANNER, scope)
    actions = jax.vmap(scope["plan"])(scope["keys"], scope["robots"]).action
    assert actions.shape == (3, 1)
    # Far right: brake. Left: push. Fast to the right: brake.
    assert np.sign(actions[:, 0]).tolist() == [-1.0, 1.0, -1.0]
    lines = PLANNER.strip().splitlines()
    assert len(lines) <= 16


def test_model_block():
    scope = {}
    exec(MODEL, scope)
    task = scope["make_task"]("host")
    state = task.reset(jax.random.key(0))
    # The tip is as high as the pole is long, upright.
    height = 0.5 * np.cos(np.asarray(state.motion.qpos))
    np.testing.assert_allclose(task.reward(state), height[0], atol=1e-3)
    assert task.observe(state).shape == (3,)
    assert len(MODEL.strip().splitlines()) <= 15


def test_training_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ml_collections.ConfigDict(config_lib.to_dict(tiny.run()))
    monkeypatch.setattr(quickstart, "get_config", lambda: small)
    scope = {}
    exec(TRAINER, scope)
    assert scope["outcome"].code == 0 and scope["outcome"].evaluation.shape == (1,)


def test_controller_block(tmp_path, monkeypatch):
    config = tiny.run()
    spec = acting.build(config.agent, 3, 2)
    state = jax.vmap(lambda key: agent.init(key, config.agent, spec))(
        jax.random.split(jax.random.key(0), 1)
    )
    folder = tmp_path / "runs/quickstart/default/checkpoints"
    folder.mkdir(parents=True)
    checkpoint.save(folder, 10, state, config, spec)
    monkeypatch.chdir(tmp_path)
    scope = {"observation": np.zeros(3)}
    exec(CONTROLLER, scope)
    assert scope["action"].shape == (2,)


def test_files_named_in_the_readme_exist():
    paths = re.findall(r"(?:pomcp_jax|experiments|docs)/[\w./-]*\w", README)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_presets_of_the_table_are_all():
    from pomcp_jax import presets

    assert set(re.findall(r"^\| `(\w+)` \|", README, flags=re.M)) == set(presets.PRESETS)
