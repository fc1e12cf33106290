"""Every example runs, at a small size."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = {
    "gym_loop": ["--steps=5"],
    "lambda_sweep": ["--decisions=200", "--values", "0.1", "1"],
    "mjx_cartpole": ["--steps=2", "--samples=16"],
    "quadrotor": ["--steps=40", "--seeds=2", "--samples=64"],
    "robots_batch": ["--steps=10", "--robots=3"],
}
"""Arguments of examples that are not small by themselves."""
PRINTS = {
    "gym_loop": r"return [\d.]+ in 5 decisions\n",
    "lambda_sweep": r"lambda 0.1: policy's return [\d.]+ of 20, KL to the prior [\d.]+ nats\n",
    "mjx_cartpole": r"0.08 s   height  -\d.\d\d   force +-?[\d.]+ N\n",
    "quadrotor": r"\| knots and cost \| -?[\d.]+ ± [\d.]+ \| [\d.]+ ± [\d.]+ \| \d+ \|\n",
    "robots_batch": r"3 robots: [\d.]+ ms a decision of all, 1 trace\(s\)\n",
    "ten_lines": r"after 4 s: position -?0.0\d\d, speed -?0.0\d\d\n",
}


@pytest.fixture
def as_users_have_it(monkeypatch):
    """The project's folder, without this suite's strict modes."""
    monkeypatch.chdir(ROOT)
    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    # Warnings of other people's packages are no errors of an example.
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, as_users_have_it, monkeypatch, capsys):
    """In this process: one of its own for each would import JAX and MuJoCo every time."""
    monkeypatch.setattr(sys, "argv", [str(path), *SMALL.get(path.stem, [])])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(PRINTS.get(path.stem, r"\S"), out), out
    if path.stem == "quadrotor":
        smooth(out)


def smooth(table):
    """Correlated noise and knots make actions smoother, at this size too."""
    rows = re.findall(r"^\| (.+?) \| .+? \| ([\d.]+) ± ", table, flags=re.M)
    change = {name: float(value) for name, value in rows}
    for name in ("correlated noise", "knots"):
        assert change[name] < 0.7 * change["independent noise"], table


def test_examples_say_how_to_run_them():
    """Their docstring has the command, and the README names them."""
    readme = (ROOT / "README.md").read_text()
    assert len(EXAMPLES) >= 6
    for path in EXAMPLES:
        text = path.read_text()
        assert f"python examples/{path.name}" in text.split('"""')[1], path
        assert f"examples/{path.name}" in readme, path
