"""Suites: their configurations, and how cells are run, kept, skipped and repeated."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments import clock, parsers, reproduce, suites
from experiments.launchers import local, plans, study
from pomcp_jax import config as config_lib
from pomcp_jax import envs
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import results
from pomcp_jax.running import workdirs
from pomcp_jax.running.progress import Progress

TRAINING = """
import json, pathlib, sys
out, code = pathlib.Path(sys.argv[1]), int(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text(sys.argv[3])
(out / "checkpoints").mkdir(exist_ok=True)
(out / "evaluations.csv").write_text("seed,decisions,eval/return\\n0,1,2\\n")
(out / "metrics.csv").write_text("seed,decisions\\n0,1\\n")
status = "done" if code == 0 else "training broke: x"
(out / "run.json").write_text(json.dumps({"exit_code": code, "status": status}))
print("trained")
sys.exit(code)
"""
WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def plans_of(tmp_path, **kwargs):
    return plans.make_plans(study_of(tmp_path), **kwargs)


def study_of(tmp_path, name="debug", suite=suites.SUITES["debug"]):
    return study.Study(name, suite, tmp_path / "out", tmp_path / "work")


def pretend(plan, code=0):
    """The plan with a command that pretends to train."""
    arguments = [str(plan.workdir), str(code), workdirs.config_text(plan.config)]
    return plan._replace(command=[sys.executable, "-c", TRAINING, *arguments])


def go(cells, jobs=1):
    runner = local.Runner(cells, jobs)
    runner.start()
    return runner, local.follow(runner, len(cells), Progress())


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_suite_resolves(name, tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "check_assets", lambda name, assets: None)
    suite = suites.SUITES[name]
    cells = plans.make_plans(study_of(tmp_path, name, suite))
    assert len(cells) == len(suite.tasks) * len(suite.methods)
    assert len({plan.folder for plan in cells}) == len(cells)
    for plan in cells:
        assert plan.config.env.task == plan.task
        assert plan.config.train.num_seeds == suite.num_seeds


def test_methods_of_a_suite_differ_by_their_fields(tmp_path):
    suite = suites.SUITES["debug"]._replace(
        methods={"a": suites.Method("po_mpc", {"agent.policy.kl_coef": 9.0})},
        overrides={"agent.policy.kl_coef": 3.0, "agent.mppi.horizon": 2},
    )
    first, _ = plans.make_plans(
        study_of(tmp_path, "x", suite), overrides=["--config.agent.mppi.horizon=4"]
    )
    assert first.config.agent.policy.kl_coef == 9.0 and first.config.agent.mppi.horizon == 4
    assert first.facts == {"suite": "x", "method": "a", "preset": "po_mpc"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite=classic"], "did you mean classic3?"),
        (["--suite=debug", "--methods", "pompc"], "did you mean po_mpc?"),
        (["--suite=debug", "--tasks", "probe/lqq"], "did you mean probe/lqr?"),
        (["--suite=debug", "--jobs=0"], "--jobs = 0"),
        (["--suite=debug", "--minutes=0"], "--minutes = 0: must be above 0"),
        (["--suite=debug", "--jobs=999"], "--jobs = 999"),
        (["--suite=debug", "--config.train.num_seed=1"], "config.train.num_seeds"),
        (["--suite=debug", "--config.agent.mppi.num_elites=99"], "agent.mppi.num_elites = 99"),
        (["--suite=debug", "--dry-rum"], "'--dry_rum'"),
        (["--suite=debug", "--cell=4"], "--cell = 4: must be 0 to 3; --list shows the cells"),
        (["--suite=debug", "--wandb=a/b"], "--wandb = 'a/b': must be the name of a project"),
        (["--suite=none.json"], "--suite = 'none.json': No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_runs_nothing(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local.Runner, "start", lambda self: pytest.fail("started"))
    assert reproduce.main([*arguments, f"--out={tmp_path / 'o'}", f"--work={tmp_path / 'w'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "work", "words"),
    [
        ("same", "same", "cells train there; must be another folder than --work ="),
        ("runs/reproduce/study", None, "cells train there; must be another folder than"),
        ("file", "w", "/file' is no folder"),
        ("file/below", "w", "/file' is no folder"),
    ],
)
def test_a_folder_that_cannot_hold_results_is_refused(
    out, work, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local.Runner, "start", lambda self: pytest.fail("started"))
    (tmp_path / "file").write_text("mine")
    arguments = ["--suite=debug", f"--out={out}", *([f"--work={work}"] if work else [])]
    assert reproduce.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: --out = ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_name_given_twice_is_one_cell(tmp_path, capsys):
    twice = ["--tasks", "probe/lqr", "probe/lqr", "--methods", "tdmpc2", "tdmpc2"]
    assert reproduce.main(["--suite=debug", "--list", f"--out={tmp_path / 'o'}", *twice]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_dry_run_prints_commands_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--suite=debug", "--dry_run", "--methods", "tdmpc2", f"--out={out}"]
    assert reproduce.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("to train  probe/") for line in lines)
    assert ":probe/lqr,tdmpc2" in lines[0] and "num_seeds=2" in lines[0]
    assert not out.exists()


def listed(capsys, *arguments):
    assert reproduce.main(["--list", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_shows_suites(capsys):
    lines = listed(capsys)
    assert [line.split()[0] for line in lines[1:]] == list(suites.SUITES)


def test_list_shows_the_state_of_every_cell_and_writes_nothing(tmp_path, capsys, monkeypatch):
    out, work, published = tmp_path / "out", tmp_path / "work", tmp_path / "published"
    arguments = "--suite=debug", f"--out={out}", f"--work={work}"
    first, second, third, fourth = (pretend(plan) for plan in plans_of(tmp_path))
    go([first])
    second.workdir.mkdir(parents=True)
    (second.workdir / "run.json").write_text('{"exit_code": 143, "last_checkpoint": 1200}')
    third.workdir.mkdir(parents=True)
    (third.workdir / "run.json").write_text('{"exit_code": 3}')
    go([fourth._replace(folder=published / "debug" / "probe_match" / "po_mpc")])
    (fourth.workdir / "run.json").unlink()
    monkeypatch.setattr(reproduce, "PUBLISHED", published)
    before = sorted(tmp_path.rglob("*"))
    total = f"{second.config.train.total_decisions:,}"
    assert listed(capsys, *arguments) == [
        "  0  probe/lqr tdmpc2    finished",
        f"  1  probe/lqr po_mpc    stopped, 1,200 of {total} decisions saved",
        "  2  probe/match tdmpc2  diverged, starts over",
        "  3  probe/match po_mpc  to train; published",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    with second.log.open("a") as log:  # another process trains it
        fcntl.flock(log, fcntl.LOCK_EX)
        assert "training, 1,200 decisions saved" in listed(capsys, *arguments)[1]
    (first.folder / "config.json").write_text(
        workdirs.config_text(config_lib.replace(first.config, {"train.seed": 5}))
    )
    assert "other configuration" in listed(capsys, *arguments)[0]


def test_published_results_are_only_read(tmp_path, capsys, monkeypatch):
    """By default results go elsewhere: a fresh clone trains."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(reproduce.PUBLISHED.parent)
    assert reproduce.main(["--suite=classic3", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    suite = suites.SUITES["classic3"]
    assert len(lines) == len(suite.tasks) * len(suite.methods)
    assert all(line.startswith("to train") for line in lines)
    assert all("--workdir=runs/reproduce/classic3/" in line for line in lines)
    args, _ = parsers.reproduce().parse_known_args(["--suite=classic3"])
    which, cells = reproduce.prepare(args, [])
    assert str(which.out) == "runs/results/classic3"
    assert {plan.folder.parents[1] for plan in cells} == {which.out}


def test_single_cells(tmp_path, capsys):
    arguments = ["--suite=debug", "--dry_run", f"--out={tmp_path}", "--cell", "3", "1", "3"]
    assert reproduce.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "to train  probe/match po_mpc", "to train  probe/lqr po_mpc",
    ]  # fmt: skip


def test_a_project_of_wandb_reaches_every_cell(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr(reproduce.loggers, "check", lambda options: None)
    args, _ = parsers.reproduce().parse_known_args(["--suite=debug", "--wandb=mine"])
    _, cells = reproduce.prepare(args, [])
    assert all(plan.command[-1] == "--wandb=mine" for plan in cells)
    out = tmp_path / "group"
    script = "import os, sys; open(sys.argv[1], 'w').write(os.environ['WANDB_RUN_GROUP'])"
    go([plans_of(tmp_path)[1]._replace(command=[sys.executable, "-c", script, str(out)])])
    assert out.read_text() == "probe/lqr po_mpc".replace(" ", "/")


def suite_file(tmp_path, **changes):
    values = json.loads(suites.EXAMPLE) | changes
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


def test_a_suite_of_ones_own(tmp_path, capsys):
    path = suite_file(tmp_path)
    suite = suites.get(str(path))
    assert suite.tasks == ("cartpole-swingup", "walker-walk") and suite.num_seeds == 3
    assert suite.methods["tdmpc2"] == suites.Method("tdmpc2", {})
    assert suite.methods["strong"] == suites.Method("po_mpc", {"agent.policy.kl_coef": 9.0})
    lines = listed(capsys, f"--suite={path}")
    assert len(lines) == 4 and "walker-walk strong" in lines[3]
    cells = plans.make_plans(study_of(tmp_path, "mine", suite))
    assert cells[1].config.agent.policy.kl_coef == 9.0 and cells[1].facts["suite"] == "mine"
    assert cells[1].config.train.total_decisions == 20_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": None}, "tasks is missing; must be a list of names"),
        ({"tasks": []}, "tasks = []: must be a list of names"),
        ({"num_seeds": 0}, "num_seeds = 0: must be a number >= 1"),
        ({"num_seeds": True}, "num_seeds = True: must be a number >= 1"),
        ({"method": {}}, "entry = 'method': unknown; did you mean methods?"),
        ({"methods": {"a": 1}}, "methods = {'a': 1}: must be an object of methods"),
        ({"methods": {"../x": {}}}, "methods has '../x'; must be the name of a folder"),
        ({"methods": {"a\0b": {}}}, "methods has 'a\\x00b'; must be the name of a folder"),
        ({"methods": {"\ud800": {}}}, "methods has '\\ud800'; must be the name of a folder"),
        ({"methods": {"a" * 101: {}}}, "must be the name of a folder"),
        ({"methods": {"a": {}, "a.log": {}}}, "methods has 'a.log'; must be the name of a folder"),
        ({"tasks": ["a/b", "a_b"]}, "tasks has 'a/b'; must be a task with its own folder"),
        ({"tasks": ["a", "a"]}, "tasks has 'a'; must be a task with its own folder"),
        ({"overrides": {"env.task": "b"}}, "overrides env.task; tasks are named in its entry"),
        ({"overrides": {"train.num_seeds": 3}}, "overrides train.num_seeds; its entry num_seeds"),
        ({"methods": {"a": {"preset": "bmcp"}}}, "preset = 'bmcp'"),
        ({"overrides": {"train.sed": 1}}, "config.train.sed"),
        ({"config": "none.py"}, "--config = 'none.py': no such file"),
    ],
)
def test_mistakes_in_a_suite_of_ones_own(tmp_path, capsys, changes, words):
    assert reproduce.main([f"--suite={suite_file(tmp_path, **changes)}", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


def test_the_documented_suite_is_the_example():
    page = (reproduce.PUBLISHED.parents[1] / "docs" / "configuration.md").read_text()
    assert suites.EXAMPLE in page


def test_a_suite_that_is_no_json(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match=r"x.json': (is not JSON|must be an object with)"):
            suites.get(str(tmp_path / "x.json"))


def test_a_finished_cell_is_kept_without_checkpoints_and_skipped(tmp_path):
    cells = [pretend(plan) for plan in plans_of(tmp_path)]
    _, ended = go(cells)
    assert ended["finished"] == cells
    folder = cells[0].folder
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "run.json", "evaluations.csv", "metrics.csv",
    }  # fmt: skip
    about = json.loads((folder / "run.json").read_text())
    assert about["suite"] == "debug" and about["method"] == "tdmpc2" and about["exit_code"] == 0
    assert plans.split(cells) == (cells, [])
    (cell,) = [c for c in results.read(tmp_path / "out") if c.folder == folder]
    assert cell.finished and cell.task == "probe/lqr" and cell.method == "tdmpc2"


def test_cells_share_the_time_and_keep_what_they_reached(tmp_path):
    cells = [pretend(plan, code=clock.TIME_IS_UP) for plan in plans_of(tmp_path)]
    runner = local.Runner(cells, 1, time.monotonic() + 600.0)
    shares = []
    real = runner._limit
    runner._limit = lambda: shares.append(real()) or []  # the pretended training has no flags
    runner.start()
    ended = local.follow(runner, len(cells), Progress())
    assert ended["paused"] == cells and not runner.late()
    minutes = [float(flag.removeprefix("--minutes=")) for (flag,) in shares]
    # A pretended cell takes no time: of ten minutes a quarter, a third of the rest, and so on.
    np.testing.assert_allclose(minutes, [10 / 4, 10 / 3, 10 / 2, 10], rtol=0.1)
    assert all((plan.folder / "metrics.csv").is_file() for plan in cells)
    assert plans.split(cells) == ([], cells)  # the same command resumes


def test_no_cell_starts_after_the_deadline(tmp_path):
    cells = [pretend(plan) for plan in plans_of(tmp_path)]
    runner = local.Runner(cells, 1, time.monotonic() - 1.0)
    runner.start()
    ended = local.follow(runner, len(cells), Progress())
    assert not any(ended.values()) and runner.late() and not cells[0].folder.exists()


def test_broken_cells_are_repeated_and_the_others_continue(tmp_path):
    cells = plans_of(tmp_path)
    _, ended = go([pretend(plan, code=3 if i == 1 else 0) for i, plan in enumerate(cells)])
    assert [plan.name for plan in ended["broke"]] == [cells[1].name]
    assert len(ended["finished"]) == 3
    assert not next(
        c for c in results.read(tmp_path / "out") if c.folder == cells[1].folder
    ).finished
    (tmp_path / "out" / "probe_match" / "po_mpc" / "run.json").write_text("{")  # half a disk
    _, todo = plans.split(cells)
    assert [plan.name for plan in todo] == [cells[1].name, cells[3].name]
    _, ended = go([pretend(plan) for plan in todo])
    assert len(ended["finished"]) == 2 and plans.split(cells) == (cells, [])


def test_an_interrupted_cell_resumes_and_others_start_over(tmp_path):
    plan, other, broken, unreadable = (pretend(plan) for plan in plans_of(tmp_path))
    for one, config in ((plan, plan.config), (other, plan.config), (broken, broken.config)):
        one.workdir.mkdir(parents=True)
        (one.workdir / "config.json").write_text(workdirs.config_text(config))
        (one.workdir / "earlier").touch()
    (broken.workdir / "run.json").write_text('{"exit_code": 3}')
    (plan.workdir / "run.json").write_text('{"exit_code": 143}')
    unreadable.workdir.mkdir(parents=True)
    (unreadable.workdir / "config.json").write_text("{")
    _, ended = go([plan, other, broken, unreadable])
    assert len(ended["finished"]) == 4
    kept = [(one.workdir / "earlier").exists() for one in (plan, other, broken)]
    assert kept == [True, False, False]
    # Nothing is deleted.
    moved = sorted(p.relative_to(tmp_path / "work") for p in (tmp_path / "work").rglob("earlier"))
    assert len(moved) == 3 and [p.parts[1] for p in moved].count("previous-1") == 2


def test_a_workdir_that_cannot_be_read_just_now_is_left_alone(tmp_path, monkeypatch):
    plan = pretend(plans_of(tmp_path)[0])
    plan.workdir.mkdir(parents=True)
    (plan.workdir / "config.json").write_text(workdirs.config_text(plan.config))
    before = sorted(tmp_path.rglob("*"))

    def short(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(plans.workdirs, "read_json", short)
    with pytest.raises(OSError, match="Too many"):
        plans.can_resume(plan._replace(config=plan.config))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_under_way_goes_on(tmp_path):
    plan = pretend(plans_of(tmp_path)[0])
    plan.workdir.mkdir(parents=True)
    assert plans.can_resume(plan)
    (plan.workdir / "config.json").write_text(workdirs.config_text(plan.config))
    for text, wanted in (
        ('{"exit_code": null, "status": "running"}', True),
        ('{"exit_code": 1}', True),
        ('{"exit_code": 3}', False),
        ("[]", False),
    ):
        (plan.workdir / "run.json").write_text(text)
        assert plans.can_resume(plan) == wanted


def test_a_run_that_cannot_even_start_leaves_no_result(tmp_path):
    plan = plans_of(tmp_path)[0]
    _, ended = go([plan._replace(command=[sys.executable, "-c", "raise SystemExit(7)"])])
    assert ended["broke"] and not plan.folder.exists()
    _, ended = go([plan._replace(command=[str(tmp_path / "nothing")])])
    assert ended["broke"] and not plan.folder.exists()


def test_results_of_another_configuration_are_refused(tmp_path):
    plan = plans_of(tmp_path)[0]
    go([pretend(plan)])
    (other,) = plans_of(
        tmp_path, tasks=["probe/lqr"], methods=["tdmpc2"], overrides=["--config.train.seed=5"]
    )
    with pytest.raises(ConfigError, match="holds results with train.seed = 0, this suite has 5"):
        plans.split([other])
    held = json.loads((plan.folder / "config.json").read_text())
    del held["train"]["seed"]  # a field that is newer than the results
    (plan.folder / "config.json").write_text(json.dumps(held))
    assert plans.split([other]) == ([other], [])


def test_interrupt_stops_the_runs_and_starts_no_more(tmp_path):
    marker = tmp_path / "started"
    first, second, *_ = plans_of(tmp_path)
    first = first._replace(command=[sys.executable, "-c", WAITING, str(marker)])

    def interrupt():
        while not marker.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    runner, ended = go([first, pretend(second)])
    thread.join()
    assert runner.received == signal.SIGINT
    assert ended["stopped"] == [first] and not ended["finished"]
    assert not second.workdir.exists() and not (tmp_path / "out").exists()


def test_a_cell_that_another_process_trains_is_left_alone(tmp_path):
    plan = pretend(plans_of(tmp_path)[0])
    plan.log.parent.mkdir(parents=True)
    lock = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
    lock += "print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", lock, str(plan.log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"1\n"
        _, ended = go([plan])
        assert ended["busy"] == [plan] and not plan.workdir.exists()
    finally:
        holder.communicate(b"\n")


def test_cores_are_shared_out():
    assert local.core_sets(2, [0, 1, 4, 5, 6]) == [{0, 4, 6}, {1, 5}]
    with pytest.raises(ConfigError, match="must be 1 to 2"):
        local.core_sets(3, [0, 1])


def test_each_of_several_jobs_has_its_own_cores(tmp_path):
    """Where the system can pin processes at all; elsewhere both lists are empty."""
    script = "import os, sys; cores = getattr(os, 'sched_getaffinity', lambda _: ())(0);"
    script += "open(sys.argv[1], 'w').write(repr(sorted(cores)))"
    cells = [
        plan._replace(command=[sys.executable, "-c", script, str(tmp_path / f"cores{i}")])
        for i, plan in enumerate(plans_of(tmp_path))
    ]
    cores = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))
    jobs = min(2, len(cores) or 1)
    go(cells, jobs)
    allowed = [sorted(part) for part in local.core_sets(jobs, cores)] if cores else [[]]
    for i in range(len(cells)):
        assert json.loads((tmp_path / f"cores{i}").read_text()) in allowed
    assert sorted(getattr(os, "sched_getaffinity", lambda _: ())(0)) == cores
