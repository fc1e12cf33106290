"""Lowered programs in files: found, bit-equal, and never another program's."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import config as config_lib
from pomcp_jax import envs, evaluate, program_store, train
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import Config, EnvConfig
from pomcp_jax.running import trainer


def store(folder, **env):
    return program_store.store(folder, EnvConfig(**env))


def doubled(folder, traced, name="doubled", **options):
    """A function as a process has it that has compiled nothing yet; ``traced`` counts traces."""

    def double(x, scale, config):
        traced.append(config.agent.mppi.horizon)
        return {"out": x * jnp.asarray(scale, x.dtype) * config.agent.mppi.horizon}

    return Compiled(jax.jit(double, **options), frozenset(), name=name, store=store(folder))


@pytest.fixture
def config():
    return tiny.run()


def test_a_second_process_traces_nothing_and_gets_the_same_bits(tmp_path, config):
    traced = []
    x = jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32)
    first = doubled(tmp_path, traced)(x, 2, config)["out"]
    second = doubled(tmp_path, traced)(x, 2, config)["out"]
    assert len(traced) == 1
    assert first.tobytes() == second.tobytes()
    # A Python number is an argument: another one needs no other program.
    third = doubled(tmp_path, traced)(x, 3, config)["out"]
    assert len(traced) == 1
    np.testing.assert_allclose(third, 3 * np.asarray(x) * config.agent.mppi.horizon, rtol=1e-6)


def test_preparing_in_a_thread_stores_too(tmp_path, config):
    traced, x = [], jnp.ones(3)
    function = doubled(tmp_path, traced)
    function.prepare(x, 2, config)()
    function(x, 2, config)
    doubled(tmp_path, traced)(x, 2, config)
    assert len(traced) == 1


def test_results_as_arguments_compile_nothing_again(tmp_path, config, caplog):
    """As the state of a run, which every chunk returns and the next one takes."""
    function = doubled(tmp_path, [], donate_argnums=0)
    x = jnp.ones(3)
    function.prepare(x, 2, config)()
    with jax.log_compiles(True):
        for _ in range(3):
            x = function(x, 2, config)["out"]
    assert not [record.getMessage() for record in caplog.records]
    assert x[0] == (2 * config.agent.mppi.horizon) ** 3


class Pair(NamedTuple):
    one: jax.Array
    other: dict


class Triple(NamedTuple):
    one: jax.Array
    two: jax.Array
    three: jax.Array


def test_results_have_their_structure(tmp_path, config):
    """Arguments come back as what they are, and named tuples if they are announced."""
    traced = []

    def mixed(state, x):
        traced.append(0)
        out = Pair(x, {"b": x + 1, "a": (x + 2, {"c": x + 3})})
        return state._replace(one=x), out, {"pair": out, "state": state}

    state = Triple(*(jnp.full(2, float(i)) for i in range(3)))
    x = jnp.zeros(2)
    expected = mixed(state, x)
    for _ in range(2):
        function = Compiled(
            jax.jit(mixed), frozenset(), name="mixed", store=store(tmp_path), types=(Pair,)
        )
        out = function(state, x)
        assert jax.tree.structure(out) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, out, expected)
    assert len(traced) == 2  # once by hand


def test_other_results_are_traced_as_ever(tmp_path):
    def unknown(x):
        return Triple(x, x + 1, x + 2)

    for _ in range(2):
        out = Compiled(jax.jit(unknown), frozenset(), name="f", store=store(tmp_path))(jnp.ones(2))
        assert isinstance(out, Triple) and out.three[0] == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["shape", "dtype", "kind", "static", "name", "weak"])
def test_other_arguments_are_another_program(tmp_path, config, what):
    traced, x = [], jnp.ones(3)
    doubled(tmp_path, traced)(x, 2, config)
    longer = config_lib.replace(config, {"agent.mppi.horizon": config.agent.mppi.horizon + 1})
    args = {
        "shape": (jnp.ones(4), 2, config),
        "dtype": (jnp.ones(3, jnp.int32), 2, config),
        "kind": (x, 2.0, config),
        "static": (x, 2, longer),
        "name": (x, 2, config),
        "weak": (jnp.broadcast_to(jnp.asarray(1.0), (3,)), 2, config),
    }[what]
    name = "other" if what == "name" else "doubled"
    doubled(tmp_path, traced, name)(*args)
    assert len(traced) == 2


def test_donated_arguments_stay_donated(tmp_path, config):
    traced = []
    for _ in range(2):
        x = jnp.ones(3)
        doubled(tmp_path, traced, donate_argnums=0)(x, 2, config)
        assert x.is_deleted()
    assert len(traced) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    ],
)
def test_a_damaged_file_is_compiled_again_and_replaced(tmp_path, config, spoil):
    traced, x = [], jnp.ones(3)
    expected = doubled(tmp_path, traced)(x, 2, config)["out"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(spoil(file.read_bytes()))
    np.testing.assert_array_equal(doubled(tmp_path, traced)(x, 2, config)["out"], expected)
    assert len(traced) == 2
    doubled(tmp_path, traced)(x, 2, config)
    assert len(traced) == 2


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, config):
    (tmp_path / "file").write_text("no folder")
    traced, x = [], jnp.ones(3)
    for _ in range(2):
        out = doubled(tmp_path / "file", traced)(x, 2, config)["out"]
        assert out[0] == 2 * config.agent.mppi.horizon
    assert len(traced) == 2


def test_under_an_outer_trace_the_function_itself_is_used(tmp_path, config):
    traced = []
    function = doubled(tmp_path, traced)
    out = jax.jit(lambda x: function(x, 2, config)["out"])(jnp.ones(3))
    assert out[0] == 2 * config.agent.mppi.horizon
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "env, wanted",
    [
        ({}, True),
        ({"task": "dog-walk"}, True),
        ({"task": "probe/lqr"}, True),
        ({"backend": "host"}, False),
        ({"assets": "folder"}, False),
        ({"task": "my_tasks:reach"}, False),
        ({"task": "gym/Pendulum-v1"}, False),
        ({"task": "brax/ant"}, False),
        ({"task": "humanoid/h1-walk"}, False),
    ],
)
def test_only_programs_of_our_own_sources_are_stored(env, wanted):
    assert program_store.storable(EnvConfig(**env)) is wanted


def test_what_programs_depend_on_is_in_their_key(tmp_path, monkeypatch):
    def origin(**env):
        return store(tmp_path, **env).origin

    before = origin()
    assert origin() == before
    others = [origin(task="walker-walk"), origin(action_repeat=1)]
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_IMPORTED", "an edited file")
        others.append(origin())
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_models", lambda: "an edited model")
        others.append(origin())
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.0")
        others.append(origin())
    assert len({before, *others}) == 1 + len(others)


def test_sources_are_all_modules_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "envs").mkdir()
    monkeypatch.setattr(program_store, "__file__", str(tmp_path / "program_store.py"))
    seen = [program_store._sources()]
    for name, text in [("a.py", "1"), ("a.py", "2"), ("envs/b.py", "1")]:
        (tmp_path / name).write_text(text)
        seen.append(program_store._sources())
    assert len(set(seen)) == len(seen)
    (tmp_path / ".a.py.swp").write_text("an editor's")
    (tmp_path / "a.cpython-311.pyc.123").write_text("a compiler's")
    assert program_store._sources() == seen[-1]


def test_models_are_those_that_are_read(tmp_path, monkeypatch):
    suite = tmp_path / "dm_control" / "suite"
    (suite / "common").mkdir(parents=True)
    (tmp_path / "dm_control" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    # Another test may have imported the installed one, which would be found before the path is.
    monkeypatch.delitem(sys.modules, "dm_control", raising=False)
    seen = []
    for name in ("cartpole.xml", "common/skybox.xml"):
        for text in ("<mujoco/>", "<mujoco />"):
            (suite / name).write_text(text)
            seen.append(program_store._models())
    assert len(set(seen)) == len(seen)


def test_a_process_whose_files_were_edited_stores_nothing(tmp_path, config, monkeypatch):
    """Its modules may be the old ones, or some of each."""
    function = doubled(tmp_path, [])
    monkeypatch.setattr(program_store, "_sources", lambda: "edited")
    assert function(jnp.ones(3), 2, config)["out"][0] == 2 * config.agent.mppi.horizon
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read_cost_nothing_but_time(tmp_path, monkeypatch):
    monkeypatch.setattr(program_store, "_IMPORTED", "")
    assert store(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(program_store, "_models", lambda: None)
    assert store(tmp_path) is None


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.debug_nans(True),
        lambda: jax.disable_jit(True),
        lambda: jax.default_device(jax.devices()[0]),
    ],
)
def test_nothing_is_stored_while_debugging_or_on_a_chosen_device(tmp_path, config, setting):
    function = doubled(tmp_path, [])
    with setting():
        assert function(jnp.ones(3), 2, config)["out"][0] == 2 * config.agent.mppi.horizon
    assert not list(tmp_path.iterdir())


def test_settings_are_those_of_the_call(tmp_path):
    """Those of another thread, or of when the function was built, are another program's."""

    def draw(key):
        return jax.random.uniform(key, (5,))

    def drawn(*, prepared=False):
        function = Compiled(
            jax.jit(lambda key: draw(key)), frozenset(), name="draw", store=store(tmp_path)
        )
        if prepared:
            thread = threading.Thread(target=function.prepare(jax.random.key(0)))
            thread.start()
            thread.join()
        return np.asarray(function(jax.random.key(0)))

    default = np.asarray(draw(jax.random.key(0)))
    with jax.threefry_partitionable(False):
        other = np.asarray(draw(jax.random.key(0)))
        np.testing.assert_array_equal(drawn(prepared=True), other)
    assert (default != other).any()
    for _ in range(2):
        np.testing.assert_array_equal(drawn(), default)


def test_keys_of_dictionaries_are_those_of_the_result(tmp_path):
    for _ in range(2):
        function = Compiled(
            jax.jit(lambda x: {2: x, 10: x + 1}), frozenset(), name="f", store=store(tmp_path)
        )
        assert list(function(jnp.ones(2))) == [2, 10]


def test_a_prepared_program_is_the_one_that_is_called(tmp_path, config):
    """Weak types, as in swept floats, are part of it."""
    function = doubled(tmp_path, [])
    weak = jnp.broadcast_to(jnp.asarray(1.0), (3,))
    assert weak.weak_type
    function.prepare(weak, 2, config)()
    function(weak, 2, config)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_programs_used_longest_ago_are_removed(tmp_path, monkeypatch, config):
    for i, size in enumerate([300, 300, 300]):
        path = tmp_path / f"{i}.program"
        path.write_bytes(bytes(size))
        os.utime(path, (i, i))
    (tmp_path / "notes.txt").write_text("kept")
    monkeypatch.setattr(program_store, "MOST_BYTES", 700)
    program_store._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1.program",
        "2.program",
        "notes.txt",
    ]


SCRIPT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from pomcp_jax import program_store
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import EnvConfig

traced = []
def root(x):
    traced.append(0)
    return jnp.linalg.cholesky(x)
store = program_store.store(Path(sys.argv[1]), EnvConfig())
out = Compiled(jax.jit(root), frozenset(), name="root", store=store)(4.0 * jnp.eye(3))
print(len(traced) > 0, float(out[2, 2]))
"""


def test_a_stored_program_may_call_lapack(tmp_path):
    """In a process that has lowered no such call, LAPACK's pointers are empty."""
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert said == [["True", "2.0"], ["False", "2.0"]]


def trained(tmp_path, name, config: Config, stores=True):
    """A run that keeps its programs, as in a process of its own."""
    folder = str(tmp_path / "programs") if stores else None
    run = trainer.Trainer(config, tmp_path / name, programs=folder)
    assert run.run().code == 0


def test_a_second_run_traces_nothing_and_is_the_same(tmp_path, monkeypatch):
    config = tiny.run(train__num_seeds=2, train__total_decisions=40)
    trained(tmp_path, "first", config)
    assert len(list((tmp_path / "programs").iterdir())) == 3  # both evaluations, too

    trained(tmp_path, "without", config, stores=False)

    def trace(*args, **kwargs):
        raise AssertionError("traced")

    for module, name in ((train, "chunk"), (evaluate, "rollout")):
        monkeypatch.setattr(module, name, trace)
    trained(tmp_path, "second", config)
    first, second, without = (
        tiny.saved(tmp_path / name, 40) for name in ("first", "second", "without")
    )
    assert first == second == without


def test_environments_passed_to_the_trainer_are_not_stored(tmp_path):
    config = tiny.run(train__total_decisions=40)
    env = envs.make(config.env.task, config.env.action_repeat)
    run = trainer.Trainer(config, tmp_path / "run", env=env, programs=tmp_path / "programs")
    assert run.functions.program.chunk.store is None
