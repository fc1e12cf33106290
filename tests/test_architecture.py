"""Import directions, length of functions, and public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pomcp_jax

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pomcp_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LONGEST = 60
"""Most lines of a function."""

LEARNING = {
    "agent", "train", "envs", "evaluate", "checkpoint", "acting", "diagnostics",
    "diagnostics_gradients",
}  # fmt: skip
FORBIDDEN = {
    "types": {"*"},
    "nearest": {"*"},
    "attribute_docs": {"*"},
    "errors": {"*"},
    "fields": {"*"},
    "values": {"*"},
    "config": {"*"},
    "maths": {"*"},
    "packing": {"*"},
    "data_axis": {"*"},
    "normalising": {"*"},
    "planner_model": {"*"},
    "networks": LEARNING | {"mppi", "losses", "replay", "world_model"},
    "world_model": LEARNING | {"mppi", "replay"},
    "actors": LEARNING | {"mppi", "replay", "losses"},
    "mppi": LEARNING | {"networks", "world_model", "losses", "replay", "maths"},
    "losses": LEARNING | {"networks", "world_model", "mppi", "replay"},
    "optimise": LEARNING | {"networks", "world_model", "mppi", "losses", "replay", "maths"},
    "model_loss": LEARNING | {"mppi", "policy_loss"},
    "policy_loss": LEARNING | {"mppi"},
    "replay": LEARNING | {"networks", "world_model", "mppi", "losses"},
    "acting": LEARNING - {"acting"},
    "agent": LEARNING - {"acting", "agent"},
    "train": {"evaluate", "diagnostics", "diagnostics_gradients"},
    "evaluate": {"agent", "train", "diagnostics", "diagnostics_gradients"},
}
"""What a room may not import; ``*`` is all but the ground floor."""
GROUND = {"types", "config", "errors", "fields", "attribute_docs", "nearest", "values"}
DOWN = (
    "maths packing normalising networks world_model actors losses model_loss policy_loss acting"
    " agent train_state prefill train diagnostics_gradients diagnostics"
).split()
"""From the ground up; a room imports only rooms that stand before it."""


def imports(path):
    """Modules that a file imports, as dotted names, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("pomcp_jax.")}
    return ours & {p.stem for p in PACKAGE.iterdir()}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room):
    used, forbidden = rooms(PACKAGE / f"{room}.py"), FORBIDDEN[room]
    if forbidden == {"*"}:
        assert used <= GROUND
    else:
        assert not used & forbidden


@pytest.mark.parametrize("room", DOWN)
def test_imports_go_down_only(room):
    assert not rooms(PACKAGE / f"{room}.py") & {*DOWN[DOWN.index(room) :]}


def test_only_actors_apply_the_network_of_an_actor():
    """A policy's raw outputs are bounded and squashed in one place."""
    names = ("world_model.policy", "wm.policy")
    users = {
        path.stem for path in FILES for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in names
    }  # fmt: skip
    assert users == {"actors"}


def test_the_drawing_process_imports_numpy_and_mujoco_only():
    """It starts for every film, and JAX takes longer to import than it takes to draw."""
    names = {name.split(".")[0] for name in imports(PACKAGE / "rendering/draw.py")}
    assert names - sys.stdlib_module_names == {"mujoco", "numpy", "OpenGL"}


def test_environments_know_nothing_of_learning():
    for path in (PACKAGE / "envs").rglob("*.py"):
        assert rooms(path) <= {"envs"} | GROUND, path


def test_reports_know_results_and_no_jax():
    for path in (PACKAGE / "reporting").rglob("*.py"):
        assert rooms(path) <= {"reporting", "files", "config", "nearest", "parts"}, path
        assert not any(name.split(".")[0] == "jax" for name in imports(path)), path


def modules():
    """Our modules, each with those that it imports on import."""
    files = [*FILES, *(ROOT / "experiments").rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    graph = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= inner & names.keys() or {node.module}
        graph[name] &= names.keys()
    return graph


def test_imports_form_no_circle():
    graph, done = modules(), []
    while free := [name for name in graph if name not in done and graph[name] <= {*done}]:
        done += free
    assert sorted(graph.keys() - set(done)) == []


def test_nobody_imports_a_command_line():
    programs = {
        f"experiments.{name}"
        for name in (
            "run sweep evaluate render export dataset import_tdmpc2 plot aggregate report".split()
        )
    }
    for name, used in modules().items():
        assert name.startswith("experiments.benchmarks") or not used & programs, name


def test_only_networks_imports_flax():
    users = {p.stem for p in FILES if any(n.split(".")[0] == "flax" for n in imports(p))}
    assert users == {"networks"}


def test_the_package_does_not_import_experiments():
    for path in FILES:
        assert not any(name.split(".")[0] == "experiments" for name in imports(path)), path


def test_methods_are_values_not_branches():
    """The name of a preset appears as a string in presets.py and nowhere else."""
    from pomcp_jax import presets

    for path in FILES:
        strings = {
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }  # fmt: skip
        assert path.stem == "presets" or not strings & set(presets.PRESETS), path


@pytest.mark.parametrize("folder", ["pomcp_jax", "experiments"])
def test_functions_are_short(folder):
    """Files are divided by subject; only functions have a length limit."""
    lengths = {
        f"{path.name} {node.name}": node.end_lineno - node.lineno + 1
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def runs_code_from_data(tree):
    """Lines of a syntax tree that could execute the contents of a file."""
    modules = set("pickle _pickle cloudpickle dill shelve marshal joblib jsonpickle".split())
    names = {"eval", "exec", "__import__", "execfile"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = {alias.name.split(".")[0] for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            used = {(node.module or "").split(".")[0]} & modules
        elif isinstance(node, ast.Name):
            used = {node.id} & (names | modules)
        elif isinstance(node, ast.Attribute):  # builtins.eval, numpy's and torch's loaders
            used = {node.attr} & {"eval", "exec", "unsafe_load", "read_pickle"}
        elif isinstance(node, ast.keyword):
            used = {node.arg} & {"allow_pickle"}
        elif isinstance(node, ast.Constant):  # import_module("pickle")
            used = {node.value} & modules if isinstance(node.value, str) else set()
        else:
            used = set()
        if used:
            yield f"{getattr(node, 'lineno', '?')}: {used.pop()}"


@pytest.mark.parametrize("folder", ["pomcp_jax", "experiments"])
def test_nothing_runs_code_that_a_file_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert not list(runs_code_from_data(ast.parse(path.read_text()))), path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, cloudpickle.x",
        "from dill import loads",
        "def f(x): return eval(x)",
        "import builtins; builtins.exec('x')",
        "np.load(x, allow_pickle=True)",
        "importlib.import_module('dill')",
        "f = __import__",
    ],
)
def test_what_runs_code_is_found(code):
    assert list(runs_code_from_data(ast.parse(code)))


def test_public_names_are_frozen():
    modules = (
        "acting agent checkpoint config controller envs evaluate losses maths mppi presets replay"
        " train world_model"
    )
    names = (
        "Config ConfigError Controller ModelFns MppiConfig PlanOutput PlanState Task Trainer"
        " load_controller make_env"
    )
    assert pomcp_jax.__all__ == [*modules.split(), *names.split(), "__version__"]
    assert len(pomcp_jax.__all__) <= 30
    for name in pomcp_jax.__all__:
        assert getattr(pomcp_jax, name) is not None


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'plam'"):
        pomcp_jax.plam  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"jax", "flax", "brax", "mujoco", "dm_control", "orbax", "matplotlib", "scipy"}
    code = f"import sys, pomcp_jax; print({heavy} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_version_is_that_of_the_project():
    assert f'version = "{pomcp_jax.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_planner_alone_needs_jax_only():
    """``pomcp_jax.mppi`` plans where nothing else of our dependencies is installed."""
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import jax, jax.numpy as jnp
from pomcp_jax import MppiConfig, ModelFns, mppi
config = MppiConfig(horizon=2, num_samples=8, num_proposals=0, num_elites=2, iterations=1)
model = ModelFns(lambda p, x, a: (x + a, -x[0] ** 2, jnp.ones(())), lambda p, k, x: -x[0] ** 2)
plan = jax.eval_shape(
    lambda key: mppi.plan(None, key, jnp.ones(1), mppi.init(config, 1), model=model, config=config),
    jax.random.key(0),
)
print(plan.action.shape)
"""
    absent = {
        "flax", "optax", "chex", "brax", "mujoco", "dm_control", "orbax", "ml_collections", "absl",
        "matplotlib",
    }  # fmt: skip
    code = code.replace("{absent}", repr(absent))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "(1,)", out.stderr
