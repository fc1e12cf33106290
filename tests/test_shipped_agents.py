"""Trained agents of the repository: small, readable, and as good as their tables say."""

import csv
import subprocess
import tomllib
from pathlib import Path

import pytest

import pomcp_jax
from experiments import evaluate
from pomcp_jax import controller, envs

ROOT = Path(__file__).parent.parent
AGENTS = sorted(path.parent for path in (ROOT / "experiments/agents").glob("*/config.json"))


def test_there_is_an_agent_of_the_quick_start():
    assert ROOT / "experiments/agents/cartpole-swingup" in AGENTS


@pytest.mark.parametrize("agent", AGENTS, ids=lambda path: path.name)
def test_agents_are_small_and_complete(agent):
    files = [path for path in agent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2e6
    tracked = subprocess.run(
        ["git", "ls-files", str(agent)], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    # A rule of .gitignore would leave a clone with half an agent.
    assert not tracked or {ROOT / name for name in tracked} == set(files)
    for path in files:
        assert str(ROOT).encode() not in path.read_bytes(), path
    loaded = controller.load(agent)
    assert loaded.num_seeds == 1 and loaded.state.opt is None
    assert loaded.config.env.task in envs.available()


def test_the_agent_is_as_good_as_its_table(tmp_path):
    """One episode of the bare policy in dm_control itself."""
    agent = ROOT / "experiments/agents/cartpole-swingup"
    with (agent / "evaluations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["actor"] == "policy"]
    expected = float(rows[-1]["eval/policy_return"])
    out = tmp_path / "episodes.csv"
    flags = ["--actor=policy", "--backend=dm_control", "--episodes=1", f"--csv={out}"]
    assert evaluate.main([str(agent), *flags]) == 0
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    # Four standard deviations between episodes, and what one episode in another engine may differ.
    assert abs(float(row["return"]) - expected) < 4 * float(rows[-1]["std"]) + 0.1 * expected
    assert row["valid"] == "1"


def test_actions_in_the_units_of_the_environment():
    agent = ROOT / "experiments/agents/cartpole-swingup"
    loaded = pomcp_jax.load_controller(agent, actor="policy", units="environment")
    action = loaded.act([0.0, -1.0, 0.0, 0.0, 0.0])  # hanging down, at rest
    assert action.shape == (1,) and abs(action[0]) <= 1.0


def test_agents_are_part_of_the_package():
    """Every file matches a pattern of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["experiments"]
    matched = {path for pattern in patterns for path in (ROOT / "experiments").glob(pattern)}
    for agent in AGENTS:
        assert {path for path in agent.rglob("*") if path.is_file()} <= matched
