"""Interrupted and killed runs end bit for bit like uninterrupted ones."""

import csv
import os
import shutil
import signal
from pathlib import Path

import falling
import numpy as np
import pytest
import tiny

from pomcp_jax import checkpoint
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.envs import make_env
from pomcp_jax.running import add_seeds, process, starting, workdirs
from pomcp_jax.running import functions as functions_lib
from pomcp_jax.running import run as run_lib
from pomcp_jax.running.background import Stop, Worker
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import Progress

CLOCKS = {"seconds", "decisions_per_second", "frames_per_second"}
"""Columns with wall-clock times."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved or closed after it."""


class Interruption:
    """Stands for ``running.background.Control``; strikes at a numbered event of a run.

    Events are the points between chunks and every piece of device work, in their order.
    """

    def __init__(self, at=None, death=False):
        self.progress = Progress(interval=float("inf"))
        self.events, self.at, self.death = 0, at, death
        self.received = 0

    def age(self):
        return 0.0

    def check(self):
        if self.events == self.at:
            if self.death:
                raise Killed
            raise Stop(128 + signal.SIGTERM, "stopped by SIGTERM")
        self.events += 1


class Interruptible(Worker):
    """A worker that checks for interruptions before all of its work."""

    def __init__(self, interruption):
        super().__init__(interruption)
        self.check = interruption.check

    def __call__(self, function, *args, **kwargs):
        self.check()
        return super().__call__(function, *args, **kwargs)


class Tiny:
    """A tiny run: one compiled program for all of its sittings."""

    def __init__(self, env=None, **changes):
        usual = {"num_seeds": 2, "eval_decisions": 20, "checkpoint_decisions": 20}
        usual = {f"train__{name}": value for name, value in usual.items()}
        self.config = tiny.run(**(usual | changes))
        self.functions = functions_lib.build(self.config, env)

    def options(self, workdir, **changes):
        return Options(self.config, Path(workdir))._replace(**changes)

    def sit(self, workdir, interruption=None, **changes):
        """Start or resume in one process, until the end or the interruption; returns the run."""
        interruption = interruption or Interruption()
        options = self.options(workdir, **changes)
        workdirs.check_workdir(options.workdir, options.config, options.resume)
        options.workdir.mkdir(exist_ok=True)
        start = starting.begin(options, self.functions.program)
        run = run_lib.Run(options, self.functions, start, interruption)
        run.notes, run.stopped = start.notes, None
        if start.books is not None and start.state is None:
            return run
        run.work = Interruptible(interruption)
        try:
            add_seeds.catch_up(run)
            run.go()
        except Stop as stop:
            run.stopped = stop
            run.save()
            assert run.collect_save() == ""
        except Killed:
            run.collect_save()  # a real kill ends the saving thread too, now or earlier
        finally:
            run.close()
        return run


@pytest.fixture(scope="module", autouse=True)
def one_commit():
    """Fix the commit, so that commits during the tests make no difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "commit", lambda: "0123456789ab")
        yield


@pytest.fixture(scope="module")
def tiny_run():
    return Tiny()


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The run without any interruption, and how many events it has."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    interruption = Interruption()
    tiny_run.sit(workdir, interruption)
    return workdir, interruption.events


def table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def assert_same_end(workdir, wanted):
    """All leaves of the last checkpoint, the bookkeeping, and all rows of the tables."""
    step = checkpoint.steps(wanted / "checkpoints")[-1]
    ours, theirs = (checkpoint.read(w / "checkpoints", step) for w in (workdir, wanted))
    arrays = tiny.saved(workdir, step)
    assert ours.score == theirs.score and arrays == tiny.saved(wanted, step)
    assert len(arrays) > 60 and {item for item, _ in arrays} == {"agent", "run"}
    for name in set(theirs.host) - {"seconds", "tables", "last_checkpoint"}:
        assert ours.host[name] == theirs.host[name], name
    for name in ("metrics.csv", "evaluations.csv"):
        assert table(workdir / name) == table(wanted / name)
    lines = [(w / "metrics.jsonl").read_text().count("\n") for w in (workdir, wanted)]
    assert lines[0] == lines[1] == len(table(wanted / "metrics.csv"))


def test_the_uninterrupted_run_is_what_it_should_be(whole):
    workdir, events = whole
    assert events > 15
    # Seeding is two chunks, pre-training one, training four; each of two seeds.
    assert len(table(workdir / "metrics.csv")) == 2 * (2 + 1 + 4)
    assert checkpoint.steps(workdir / "checkpoints")[-1] == 60
    assert checkpoint.read(workdir / "checkpoints", 60).host["finished"]


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_anywhere_it_ends_with_the_same_bits(
    seed, tiny_run, whole, tmp_path, monkeypatch
):
    """Three interruptions at random events, including kills, in a relative folder."""
    draw = np.random.default_rng(seed)
    monkeypatch.chdir(tmp_path)
    workdir = Path("runs", "a")
    workdir.parent.mkdir()
    for i in range(3):
        at = int(draw.integers(1, whole[1] // 2))
        tiny_run.sit(workdir, Interruption(at, death=(seed + i) % 2 == 0))
    tiny_run.sit(workdir)
    assert_same_end(workdir, whole[0])


def test_kills_change_no_bit_where_bodies_fall_in_contact(tmp_path):
    """MuJoCo's C code with warm starts, and episodes that end by falls the model learns."""
    # Programs with callbacks are in no compilation cache: the smallest method, and no evaluation.
    changes = {"num_seeds": 1, "seed_decisions": 40, "total_decisions": 100, "eval_decisions": 0}
    settings = {f"train__{name}": value for name, value in changes.items()}
    learned = {
        "world_model.termination": True, "mppi.horizon": 2, "world_model.num_heads": 2,
        "policy.average_updates": 5,
        "optimizer.average_updates": 5,
    }  # fmt: skip
    short = Tiny(make_env(falling.task()), preset="tdmpc2", agent_changes=learned, **settings)

    def stop(*_):
        raise Stop(143, "stopped by SIGTERM")

    short.functions = short.functions._replace(evaluate_planner=stop, evaluate_policy=stop)
    for at in (6, 9, 9):
        killed = short.sit(tmp_path / "killed", Interruption(at, death=True))
        assert killed.stopped is None and killed.done < 100
    saved = []
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        assert short.sit(folder).stopped is not None  # at the evaluation of its end
        saved.append(tiny.saved(folder, 100))
    assert saved[0] == saved[1]
    terminated = next(
        np.frombuffer(data, kind)
        for (_, name), (kind, _, data) in saved[0].items()
        if "replay" in name and "terminated" in name
    )
    assert terminated.any()  # replay has falls


def test_a_finished_run_again_does_nothing(tiny_run, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    run = tiny_run.sit(workdir, Interruption(at=0, death=True))
    assert run.state is None and run.done == 60
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_longer_run_goes_on_from_a_finished_one(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    run = Tiny(train__total_decisions=80).sit(workdir)
    assert run.done == 80 and len(table(workdir / "metrics.csv")) == 2 * (2 + 1 + 6)


@pytest.mark.parametrize(
    "returns,saved", [([1.0, 3.0, 2.0], [30, 50, 60]), ([3.0, 3.0, 4.0], [30, 60])]
)
def test_the_best_agent_yet_is_saved_though_nothing_is_due(
    tiny_run, tmp_path, monkeypatch, returns, saved
):
    rare = {"train.checkpoint_decisions": 1_000, "train.checkpoint_keep": 9}
    seen = []  # the evaluations themselves, so that none takes the place of another in memory

    def score(evaluated):
        if not any(evaluated is other for other in seen):
            seen.append(evaluated)
        return returns[len(seen) - 1]

    monkeypatch.setattr(run_lib.metrics, "score", score)
    tiny_run.sit(tmp_path / "run", config=config_lib.replace(tiny_run.config, rare))
    known = checkpoint.scores(tmp_path / "run/checkpoints")
    evaluated = dict(zip([30, 50, 60], returns, strict=True))
    assert known == {decisions: evaluated[decisions] for decisions in saved}


def test_damaged_checkpoints_are_passed_over_by_name(tiny_run, whole, tmp_path):
    """Training resumes from the last valid checkpoint, with the same result."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    before, newest = checkpoint.steps(workdir / "checkpoints")[-2:]
    file = next((workdir / "checkpoints" / str(newest) / "run").rglob("d/*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    run = tiny_run.sit(workdir)
    warned = [note for note in run.notes if note.startswith("warning")]
    assert len(warned) == 1 and str(file) in warned[0] and f"{newest}.damaged" in warned[0]
    assert any(note.startswith(f"resuming at {before} decisions") for note in run.notes)
    assert (workdir / "checkpoints" / f"{newest}.damaged").is_dir()
    assert_same_end(workdir, whole[0])


def test_nothing_is_overwritten_when_no_checkpoint_is_whole(tiny_run, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    for manifest in workdir.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    metrics = (workdir / "metrics.csv").read_bytes()
    words = "no checkpoint of this run is intact; --resume=never.*manifest.json: does not match its"
    with pytest.raises(ConfigError, match=words):
        tiny_run.sit(workdir)
    assert (workdir / "metrics.csv").read_bytes() == metrics


def test_a_save_that_fails_is_told_and_training_goes_on(tiny_run, whole, tmp_path, monkeypatch):
    save, tried = checkpoint.save, []

    def full(folder, decisions, *args, **kwargs):
        tried.append(decisions)
        if decisions < 60:
            raise checkpoint.CheckpointError(f"{folder}/{decisions}: not saved (No space left)")
        return save(folder, decisions, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full)
    interruption = Interruption()
    told = []
    monkeypatch.setattr(interruption.progress, "say", told.append)
    workdir = tmp_path / "run"
    tiny_run.sit(workdir, interruption)
    assert len(tried) >= 3 and tried[-1] == 60
    warned = [text for text in told if "No space left" in text]
    assert len(warned) == len([decisions for decisions in tried if decisions < 60]) >= 2
    assert all(t.startswith("warning: ") and t.endswith("training continues") for t in warned)
    monkeypatch.undo()
    assert_same_end(workdir, whole[0])


def test_fresh_environments_on_request_only(tiny_run, whole, tmp_path, monkeypatch):
    """After an upgrade of MuJoCo: an error that names the remedy, then fresh episodes."""
    workdir = tmp_path / "run"
    tiny_run.sit(workdir, Interruption(at=whole[1] // 2))
    now = checkpoint.versions() | {"mujoco": "99.0"}
    monkeypatch.setattr(checkpoint, "versions", lambda: now)
    with pytest.raises(ConfigError, match=r"mujoco .* -> 99\.0.*--resume=reset_envs"):
        tiny_run.sit(workdir)
    run = tiny_run.sit(workdir, resume="reset_envs")
    assert any(note.startswith("environments were reset") for note in run.notes)
    assert run.done == 60
    assert len(table(workdir / "metrics.csv")) == len(table(whole[0] / "metrics.csv"))


def test_a_changed_source_is_told(tiny_run, whole, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    tiny_run.sit(workdir, Interruption(at=whole[1] // 2))
    monkeypatch.setattr(process, "commit", lambda: "ba9876543210")
    notes = tiny_run.sit(workdir, Interruption(at=0)).notes
    assert "warning: the source changed (0123456789ab -> ba9876543210)" in notes


def test_a_run_is_moved_aside_on_request_only(tiny_run, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    tiny_run.sit(workdir, resume="never")
    assert_same_end(workdir / "previous-1", whole[0])
    assert_same_end(workdir, whole[0])


def test_a_shorter_run_than_was_done_is_refused(tiny_run, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    shorter = tiny.config_lib.replace(tiny_run.config, {"train.total_decisions": 40})
    with pytest.raises(ConfigError, match="train.total_decisions = 40.*must be >= 60"):
        tiny_run.sit(workdir, config=shorter)


def test_two_processes_cannot_share_a_folder(tmp_path):
    held = workdirs.lock(tmp_path)
    with pytest.raises(ConfigError, match="another process is writing"):
        workdirs.lock(tmp_path)
    os.close(held)
    os.close(workdirs.lock(tmp_path))


def test_lost_lines_of_a_table_are_told(tiny_run, whole, tmp_path):
    workdir = tmp_path / "run"
    tiny_run.sit(workdir, Interruption(at=whole[1] // 2))
    path = workdir / "metrics.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    run = tiny_run.sit(workdir)
    assert any("metrics.csv: lines are missing" in note for note in run.notes)
    assert len(table(path)) > 4 and all(None not in row for row in table(path))
