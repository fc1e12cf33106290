"""``Trainer``: a run from Python, without a command line."""

import csv
import errno
import json
import re
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import Task, checkpoint, make_env
from pomcp_jax.config import ConfigError
from pomcp_jax.running.background import RESUMES, Control
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.trainer import Trainer

CONFIG = tiny.run(train__eval_decisions=20, train__checkpoint_decisions=20)


@pytest.fixture(scope="module", autouse=True)
def one_program_for_equal_runs():
    """Trainers of equal configurations share their compiled functions."""
    with tiny.shared_programs():
        yield


def quiet():
    return Control(Progress(interval=float("inf")))


def make(workdir, config=CONFIG, **options):
    return Trainer(config, workdir, **{"control": quiet(), **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run and the rows that it reported."""
    workdir, rows = tmp_path_factory.mktemp("runs") / "whole", []
    return make(workdir, on_row=[rows.append]).run(), rows


def table(workdir):
    with (workdir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_time(rows):
    clock = ("seconds", "decisions_per_second", "frames_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_outcome_and_rows(whole):
    outcome, rows = whole
    assert (outcome.code, outcome.text, outcome.decisions) == (0, "done", 60)
    assert np.isfinite(outcome.evaluation).all() and np.isfinite(outcome.policy).all()
    about = json.loads((outcome.workdir / "run.json").read_text())
    assert (about["status"], about["command"]) == ("done", "pomcp_jax.Trainer")
    written = table(outcome.workdir)
    assert [str(row["decisions"]) for row in rows] == [row["decisions"] for row in written]
    assert [row["seed"] for row in rows] == [0] * len(rows)


def test_an_outcome_is_printed_in_a_line(whole):
    text = str(whole[0])
    assert text.startswith("Outcome('done', 60 decisions in ") and len(text) < 400
    assert f"evaluation [{whole[0].evaluation[0]:,.1f}]" in text and "\n" not in text
    many = whole[0]._replace(training=np.arange(100.0))
    assert len(repr(many)) < 400 and "0.0 1.0 2.0" in repr(many) and " ...]" in repr(many)


def test_every_column_is_documented(whole):
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    documented = set(re.findall("`([a-z_/0-9]+)`", page))
    for name in ("metrics.csv", "evaluations.csv"):
        header = (whole[0].workdir / name).read_text().splitlines()[0].split(",")
        assert {column for column in header if "episode_" not in column} <= documented


def test_a_complete_run_has_nothing_to_do(whole):
    outcome, _ = whole
    again = make(outcome.workdir).run()
    assert again.nothing_to_do and again.code == 0 and again.decisions == 60


def test_a_thread_stops_and_resumes_bit_for_bit(whole, tmp_path):
    """Stopped from another thread; a second trainer in the same process resumes."""
    outcomes, control = [], quiet()

    def stop(row):
        if row["decisions"] >= 30:
            control.request(5, f"enough{RESUMES}")

    trainer = make(tmp_path, control=control, on_row=[stop])
    thread = threading.Thread(target=lambda: outcomes.append(trainer.run()))
    thread.start()
    thread.join()
    assert (outcomes[0].code, outcomes[0].text) == (5, "enough; the same command resumes")
    assert outcomes[0].decisions < 60
    assert make(tmp_path).run().code == 0
    assert without_time(table(tmp_path)) == without_time(table(whole[0].workdir))


@pytest.mark.parametrize("reason", ["stopped by SIGTERM", f"stopped after 1 minutes{RESUMES}"])
def test_a_stop_before_the_first_checkpoint_promises_no_resumption(whole, tmp_path, reason):
    control = quiet()
    control.request(75, reason)
    outcome = make(tmp_path, control=control).run()
    said = f"{reason.removesuffix(RESUMES)}; nothing had been saved yet, the same command starts"
    assert (outcome.code, outcome.text) == (75, f"{said} from the beginning")
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["status"] == outcome.text and about["last_checkpoint"] is None


def test_ctrl_c_in_a_script_saves_and_stops_the_script(tmp_path):
    presses = [KeyboardInterrupt()]

    def interrupt(row):
        for error in presses:
            raise error

    trainer = make(tmp_path, on_row=[interrupt])
    with pytest.raises(KeyboardInterrupt, match="^stopped by SIGINT"):
        trainer.run()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "stopped by SIGINT"
    presses.clear()
    # In a notebook the same object is still there.
    assert trainer.run().code == 0


def test_ctrl_c_says_when_not_all_is_saved(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make(tmp_path)

    def interrupt(row):
        monkeypatch.setattr(checkpoint, "snapshot", full)
        raise KeyboardInterrupt

    trainer.on_row = (interrupt,)
    with pytest.raises(KeyboardInterrupt, match="^stopped by SIGINT.*No space left on device"):
        trainer.run()


def test_ctrl_c_during_a_chunk_is_raised_once_it_is_saved(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    monkeypatch.setattr(
        trainer.control.progress, "line", lambda *_, **__: trainer.control.interrupt()
    )
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        trainer.run()
    assert json.loads((tmp_path / "run.json").read_text())["exit_code"] == 130
    assert not trainer.control.requested


def test_a_callback_that_fails_raises_and_the_run_resumes(tmp_path):
    def fail(row):
        raise RuntimeError("disk quota of the logger")

    with pytest.raises(RuntimeError, match="quota"):
        make(tmp_path, on_row=[fail]).run()
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["exit_code"] == 1 and "RuntimeError: disk quota" in about["status"]
    assert make(tmp_path).run().code == 0


def test_environments_of_ones_own(tmp_path):
    task = Task(
        name="reach",
        reset=lambda key: jnp.zeros(2),
        step=lambda x, action: jnp.clip(x + 0.1 * action, -1.0, 1.0),
        observe=lambda x: x,
        reward=lambda x: 1.0 - jnp.sum(jnp.abs(x)),
        terminated=lambda x: jnp.zeros((), bool),
        observation_size=2,
        action_size=2,
        episode_steps=10,
    )
    config = tiny.run(env__task="reach")
    outcome = make(tmp_path, config, env=make_env(task)).run()
    assert outcome.code == 0
    assert json.loads((tmp_path / "config.json").read_text())["env"]["task"] == "reach"
    with pytest.raises(ConfigError, match="env.task = 'reach'"):
        make(tmp_path, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(resume="maybe"), "resume = 'maybe': must be one of auto"),
        (dict(config=tiny.run(train__chunk_decisions=0)), "train.chunk_decisions = 0"),
        (dict(config=tiny.run(env__task="reacher-eazy")), "did you mean|nearest"),
    ],
)
def test_mistakes_are_found_first(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
