"""Which GPUs a suite's workers see; nothing here needs one."""

import os
import stat

import pytest

from experiments import gpus
from pomcp_jax.errors import ConfigError

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose driver lists some number of GPUs."""

    def make(count, code=0):
        lines = "\n".join(f"echo 'GPU {i}: NVIDIA H100 (UUID: GPU-{i})'" for i in range(count))
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{lines}\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv(gpus.VISIBLE, raising=False)

    return make


@pytest.mark.parametrize(
    ("text", "found"), [(None, ("0", "1", "2")), ("0", ("0",)), ("2, 1", ("2", "1"))]
)
def test_those_that_are_there_can_be_chosen(text, found, machine):
    machine(3)
    assert gpus.chosen(text) == found


@pytest.mark.parametrize("setup", [(0, 0), (2, 9)])
def test_without_a_working_driver_there_is_none(setup, machine):
    machine(*setup)
    assert gpus.chosen(None) == ()


def test_what_a_scheduler_assigned_is_all_there_is(machine, monkeypatch):
    machine(8)
    monkeypatch.setenv(gpus.VISIBLE, "GPU-a,5")
    assert gpus.chosen(None) == ("GPU-a", "5")
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.chosen(None) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,8", "--gpus = '0,8': no GPU '8'; there is 0, 1"),
        ("0,0", "--gpus = '0,0': has 0 twice"),
        ("", "--gpus = '': no GPU ''; there is 0, 1"),
    ],
)
def test_others_are_refused(text, words, machine):
    machine(2)
    with pytest.raises(ConfigError) as error:
        gpus.chosen(text)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("jobs", "names", "wanted"),
    [
        (1, "", [(None, None)]),
        (2, "", [(None, "0.45"), (None, "0.45")]),
        (1, "0 1", [("0,1", None)]),  # one run spreads its seeds over both
        (2, "0 1 2", [("0,2", None), ("1", None)]),
        (3, "4 5", [("4", "0.45"), ("5", None), ("4", "0.45")]),
    ],
)
def test_workers_share_gpus_and_their_memory(jobs, names, wanted):
    made = gpus.environments(jobs, names.split(), {"A": "b"})
    assert [(e.get(gpus.VISIBLE), e.get(FRACTION)) for e in made] == wanted
    assert all(e["A"] == "b" for e in made)


def test_a_user_s_own_share_of_memory_is_kept():
    (first, _) = gpus.environments(2, (), {FRACTION: "0.2"})
    assert first[FRACTION] == "0.2"
