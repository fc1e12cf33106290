"""The documentation: links lead somewhere, commands parse, code and notebooks run."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import tiny

from experiments import arguments, export, parsers, processes, settings, sweep
from experiments.configs import quickstart
from pomcp_jax import acting, agent, checkpoint, datasets
from pomcp_jax import config as config_lib

ROOT = Path(__file__).parent.parent
HOW_TO = sorted((ROOT / "docs/how-to").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = TOP + sorted((ROOT / "docs").glob("**/*.md")) + NOTEBOOKS


def cells(notebook, kind):
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def prose(page):
    """A page's Markdown without its blocks of code."""
    text = "\n\n".join(cells(page, "markdown")) if page in NOTEBOOKS else page.read_text()
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.M | re.S)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page):
    text = prose(page)
    links = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if re.match("https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(text):
    """Arguments of every ``python -m experiments.NAME`` of a block, with the name first."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    for line in words:
        if line[1:2] == ["-m"] and line[2].startswith("experiments."):
            yield line[2].removeprefix("experiments."), line[3:]


def own_flags(name):
    """Flags that ``experiments.run`` and ``sweep`` have of their own."""
    if name == "sweep":
        return sweep.own_flags()
    return processes.own_flags()


COMMANDS = [
    pytest.param(name, args, id=f"{page.stem}: {name} {' '.join(args)[:60]}")
    for page in [ROOT / "README.md", *HOW_TO]
    for block in blocks(page, "bash")
    for name, args in commands(block)
]


@pytest.mark.parametrize("name, args", COMMANDS)
def test_commands_parse(name, args):
    if name in ("run", "sweep", "capacity"):
        values = own_flags(name)
        try:
            settings.parse([name, *args], values)
        except settings.HelpWanted as wanted:
            assert "--help" in args or wanted.answer
        if name == "sweep":
            assert sweep.parse_grid(values.grid)
        return
    parser = getattr(parsers, name, None)
    parser = parser or importlib.import_module(f"experiments.{name}").parser
    arguments.parse(parser(), args)  # exits if an argument is unknown or malformed


def test_commands_are_found():
    assert {param.values[0] for param in COMMANDS} >= {
        "run", "sweep", "evaluate", "render", "export", "dataset", "import_tdmpc2", "plot",
        "aggregate", "reproduce",
    }  # fmt: skip


@pytest.fixture
def as_users_have_it(tmp_path, monkeypatch):
    """An empty folder, without this suite's strict modes."""
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    with tiny.shared_programs():
        yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def run_page(name, scope, **replacements):
    """Run a page's python in one scope, with some of its text replaced to be small."""
    source = "\n".join(blocks(ROOT / f"docs/how-to/{name}.md", "python"))
    for old, new in replacements.values():
        assert old in source, old
        source = source.replace(old, new)
    exec(source, scope)
    return scope


def test_every_page_with_python_is_run():
    with_python = {page.stem for page in HOW_TO if blocks(page, "python")}
    run = re.findall(r'run_page\(\s*"([\w-]+)"', Path(__file__).read_text())
    assert with_python == set(run)


def test_train(as_users_have_it, monkeypatch):
    # As in test_trainer.py, so that their programs come from the cache of compilations.
    small = tiny.run(train__eval_decisions=20, train__checkpoint_decisions=20)
    small = ml_collections.ConfigDict(config_lib.to_dict(small))
    monkeypatch.setattr(quickstart, "get_config", lambda: small)
    length = "50_000", "60"
    scope = run_page("train", {}, length=length, level=("> 700", "> -1e9"))
    assert scope["outcome"].code == 130 and "good enough" in scope["outcome"].text
    assert scope["outcome"].decisions < 60


def test_choose():
    settings = run_page("choose", {})["settings"]
    assert (settings.agent.policy.kl_coef, settings.agent.mppi.horizon) == (0.3, 5)


SMALL = """"tiny")
agent = config.replace(agent, {
    "mppi.num_samples": 64, "mppi.num_elites": 8, "mppi.num_proposals": 8, "mppi.iterations": 2,
    "optimizer.batch_size": 64, "world_model.latent_size": 32, "world_model.mlp_width": 32,
})
"""


def test_environment(as_users_have_it):
    outcome = run_page("environment", {}, agent=('"tiny")\n', SMALL))["outcome"]
    # Random actions earn about 0; going to the middle earns nearly 50.
    assert outcome.training[0] > 20.0


def test_deploy(as_users_have_it, tmp_path):
    config = tiny.run()
    spec = acting.build(config.agent, 3, 2)
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.vmap(lambda key: agent.init(key, config.agent, spec))(keys)
    folder = tmp_path / "runs/quickstart/default/checkpoints"
    folder.mkdir(parents=True)
    checkpoint.save(folder, 10, state, config, spec)
    page = "\n".join(blocks(ROOT / "docs/how-to/deploy.md", "bash"))
    export_policy = [args for name, args in commands(page) if "--actor=policy" in args]
    assert export.main(export_policy[0]) == 0
    scope = {"observation": np.zeros(3, np.float32)}
    run_page("deploy", scope, budget=("time_budget=0.1", "time_budget=60.0"))
    assert scope["action"].shape == (2,) and scope["actions"].shape == (4, 2)
    assert scope["quick"].iterations == config.agent.mppi.iterations


def test_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("data", {})
    rows = datasets.read("log.npz").rows
    assert (rows.transitions, rows.episodes, rows.obs.shape[1]) == (1000, 10, 5)


def test_compare(as_users_have_it):
    from test_sweep import SWEEP

    scope = run_page("compare", {"settings": SWEEP})
    names = [result.cell.name for result in scope["outcome"].cells]
    assert names == ["policy.kl_coef=0.1", "policy.kl_coef=1"]


def test_planner(as_users_have_it):
    scope = run_page("planner", {})
    # The episode ends at rest in the middle.
    assert scope["rewards"][0] < -0.5 and np.all(np.abs(scope["rewards"][-5:]) < 0.05)


def test_robot(as_users_have_it):
    scope = run_page("robot", {})
    # The cart stands before the wall.
    assert abs(scope["x"][0] - 1.0) < 0.1 and abs(scope["x"][1]) < 0.3


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_run(notebook, as_users_have_it, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.setenv("NOTEBOOK_SIZE", "tiny")
    scope = {}
    for cell in cells(notebook, "code"):
        exec(cell, scope)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_show_their_outputs(notebook):
    found = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in found for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    counts = [cell["execution_count"] for cell in found if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_public_names_are_described(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/_ext")
    public_names = importlib.import_module("public_names")
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    assert set(public_names.modules()) <= set(re.findall(r"automodule:: (\S+)", pages))
    names = public_names.names()
    assert len(names) > 150
    assert [aliases for aliases, value in names if not public_names.described(value)] == []
    sys.modules.pop("public_names")
