"""Environment variables and missing parts of a machine: a one-line error, or no effect."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import xla
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import functions as functions_lib

ROOT = Path(__file__).parent.parent
BODY = "experiments/configs/debug.py:cartpole-swingup"


def run(tmp_path, code=None, **variables):
    """A program in a new process: the command line without training, or ``code``."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    program = ["-c", code] if code else ["-m", "experiments.run", f"--config={BODY}"]
    flags = [] if code else ["--print_config", f"--workdir={tmp_path}/run"]
    return subprocess.run(
        [sys.executable, *program, *flags], cwd=ROOT, env=environment | variables,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "variables",
    [
        {"MUJOCO_GL": "no-such-library", "PYTHONWARNINGS": "error"},
        {
            "MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "x", "MPLBACKEND": "x",
            "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "HOME": "/nonexistent",
        },
    ],
    ids=["no such GL", "no home"],
)  # fmt: skip
def test_what_training_does_not_need_does_not_matter(variables, tmp_path):
    done = run(tmp_path, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "env.task = cartpole-swingup\n" in done.stdout


@pytest.mark.parametrize(
    "variables,expected",
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS = 'cuda': JAX finds no such device; there is "),
        ({"JAX_PLATFORMS": "tpo"}, "JAX_PLATFORMS = 'tpo': JAX finds no such device; there is "),
        ({"JAX_ENABLE_X64": "maybe"}, "JAX_...: invalid truth value 'maybe' for environment 'JAX"),
        ({"XLA_FLAGS": "--xla_nonsense=1"}, "XLA_FLAGS = '--xla_nonsense=1': Unknown flag in XLA_"),
    ],
    ids=["no GPU", "no such platform", "no truth value", "no such flag"],
)
def test_what_a_machine_lacks_is_one_line(variables, expected, tmp_path):
    if variables.get("JAX_PLATFORMS") == "cuda" and jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    done = run(tmp_path, **variables)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert expected in done.stderr and not list(tmp_path.iterdir())


def test_the_environment_is_as_before_where_drawing_is_impossible(tmp_path):
    code = (
        "import os, sys\n"
        "from pomcp_jax.envs.importing import load_mujoco\n"
        "mujoco = load_mujoco()\n"
        "assert os.environ['MUJOCO_GL'] == 'no-such-library'\n"
        "assert 'PYOPENGL_PLATFORM' not in os.environ and load_mujoco() is mujoco\n"
        "assert not [name for name in sys.modules if name.startswith('OpenGL')]\n"
        "mujoco.MjModel.from_xml_string('<mujoco/>'); mujoco.mjx; mujoco._enums\n"
    )
    code = code.replace("mujoco.mjx;", "import mujoco.mjx;")
    done = run(tmp_path, code, MUJOCO_GL="no-such-library")
    assert done.returncode == 0, done.stderr


def test_flags_that_are_there_stay(monkeypatch):
    for before, after in [
        ("", "--xla_cpu_use_fusion_emitters=false"),
        ("--a=1", "--a=1 --xla_cpu_use_fusion_emitters=false"),
        ("--xla_cpu_use_fusion_emitters=true", "--xla_cpu_use_fusion_emitters=true"),
        ("flags.txt", "flags.txt"),
    ]:
        monkeypatch.setenv("XLA_FLAGS", before)
        xla.save_memory()
        assert os.environ["XLA_FLAGS"] == after


def test_a_file_of_flags_that_there_is_not(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "/nonexistent/flags")
    with pytest.raises(ConfigError, match="XLA_FLAGS = '/nonexistent/flags': Could not open file"):
        xla.check_environment()


@pytest.mark.parametrize(
    "error", [ImportError("no\nengine"), NotImplementedError("no\nengine"), OSError("no\nengine")]
)
def test_an_engine_that_a_machine_lacks_is_one_line(error, monkeypatch):
    def make(*_):
        raise error

    monkeypatch.setattr(functions_lib.envs, "make", make)
    with pytest.raises(ConfigError) as raised:
        functions_lib.build(Config())
    assert str(raised.value) == "env.task = 'cartpole-swingup', env.backend = 'mjx': no engine"


@pytest.fixture
def cache():
    held = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", held)


def test_a_cache_that_cannot_be_is_a_warning(tmp_path, cache):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below", Path("/proc/below"), Path("a" * 300)):
        line = xla.use_cache(str(folder))
        assert line.startswith(f"warning: --cache_dir = {str(folder)!r}: ")
        assert line.endswith("; nothing compiled is kept") and "\n" not in line
        assert jax.config.jax_compilation_cache_dir is None
    assert xla.use_cache(str(tmp_path / "new" / "folder")) == ""
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == [file]  # folders are created only when needed
    assert xla.use_cache(None) == "" and jax.config.jax_compilation_cache_dir is None
