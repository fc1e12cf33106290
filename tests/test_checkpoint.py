"""Checkpoints: what is saved comes back bit for bit, and damage is noticed."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, agent, checkpoint
from pomcp_jax.checkpoint import CheckpointError

CONFIG = tiny.run(agent_changes={"optimizer__learning_rate": 0.00123})


@pytest.fixture(scope="module")
def trained():
    """Two seeds of a fresh agent."""
    static = acting.build(CONFIG.agent, 3, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    return static, jax.jit(jax.vmap(lambda k: agent.init(k, CONFIG.agent, static)))(keys)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    static, state = trained
    checkpoint.save(folder, 120, state, CONFIG, static)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_checkpoint_comes_back_bit_for_bit(trained, saved):
    static, state = trained
    back = checkpoint.restore(saved)
    assert back.decisions == 120 and back.config == CONFIG
    assert (back.static.obs_size, back.static.action_size) == (3, 2)
    assert jax.tree.structure(back.state) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back.state, state)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), back.state, state)


def test_only_the_newest_are_kept(trained, tmp_path):
    static, state = trained
    for decisions in (1, 20, 3):
        checkpoint.save(tmp_path, decisions, state, CONFIG, static, keep=2)
    assert checkpoint.steps(tmp_path) == [3, 20]


def test_saving_again_replaces(trained, tmp_path):
    static, state = trained
    checkpoint.save(tmp_path, 1, state, CONFIG, static)
    doubled = jax.tree.map(lambda x: x + x, state)
    checkpoint.save(tmp_path, 1, doubled, CONFIG, static)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore(tmp_path).state, doubled)


def test_half_written_checkpoints_are_not_seen(copy):
    shutil.copytree(copy / "120", copy / ".200.partial")
    assert checkpoint.steps(copy) == [120]


def refused(folder, *args):
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(folder, *args)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text
    return text


def test_nothing_there(tmp_path):
    assert "holds no checkpoint" in refused(tmp_path / "none")


def test_other_number(copy):
    assert "[120]" in refused(copy, 7)


@pytest.mark.parametrize("damage", ["{", "{}", '{"config": {"agent": {"mpppi": {}}}}'])
def test_damaged_description(copy, damage):
    (copy / "120" / "checkpoint.json").write_text(damage)
    assert "checkpoint.json: unreadable" in refused(copy)


def test_damaged_array(copy):
    """One flipped digest stands for one flipped bit: the two no longer agree."""
    path = copy / "120" / "checkpoint.json"
    record = json.loads(path.read_text())
    name = next(iter(record["sha256"]))
    record["sha256"][name] = "0" * 64
    path.write_text(json.dumps(record))
    text = refused(copy)
    assert name in text and "damaged" in text


def test_missing_arrays(copy):
    shutil.rmtree(copy / "120" / "agent")
    assert "unreadable" in refused(copy)


def test_sizes_that_disagree(copy):
    path = copy / "120" / "checkpoint.json"
    record = json.loads(path.read_text())
    record["observation_size"] = 5
    path.write_text(json.dumps(record))
    refused(copy)
