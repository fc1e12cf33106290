"""Suites whose cells train in milliseconds, for the tests of launchers.

    python launching.py DECISIONS SECONDS ARGUMENT ...

is ``experiments.reproduce`` with these arguments, whose cells pretend to train.
"""

import argparse
import sys
from pathlib import Path

from experiments import parsers, reproduce, suites
from experiments.launchers import cell, plans, study
from pomcp_jax import config as config_lib
from pomcp_jax.running import workdirs

FAKE = Path(__file__).with_name("fake_run.py")


def arguments(*flags):
    """Parsed arguments of ``experiments.reproduce``."""
    args: argparse.Namespace = parsers.reproduce().parse_args(["--suite=debug", *flags])
    return args


def study_of(folder, name="debug"):
    return study.Study(name, suites.SUITES[name], folder / "out", folder / "work")


def cells(folder, decisions=3, seconds=0.01, **kwargs):
    """The debug suite's four cells, which pretend to train."""
    return [
        pretend(plan, decisions, seconds) for plan in plans.make_plans(study_of(folder), **kwargs)
    ]


def pretend(plan, decisions, seconds):
    command = [sys.executable, str(FAKE), str(decisions), str(seconds)]
    text = workdirs.config_text(plan.config)
    return plan._replace(command=[*command, text, f"--workdir={plan.workdir}"])


def pretending(decisions, seconds, make=plans.make_plans):
    """``plans.make_plans`` for cells that pretend to train."""
    return lambda *args: [pretend(plan, decisions, seconds) for plan in make(*args)]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_other_configurations(folder, capsys, *flags):
    """Run a suite by its command over folders that hold other configurations; all cells pretend.

    Finished results of another configuration are refused in one line, an unfinished attempt moves
    aside, also in a line.
    """
    command = ["--suite=debug", f"--out={folder / 'out'}", f"--work={folder / 'work'}", *flags]
    one, two, *_ = plans.make_plans(study_of(folder))
    two.workdir.mkdir(parents=True)
    other = config_lib.replace(two.config, {"train.seed": 5})
    (two.workdir / "config.json").write_text(workdirs.config_text(other))
    (two.workdir / "run.json").write_text('{"exit_code": 143, "last_checkpoint": 2}')
    assert reproduce.main([*command, "--cell", "0", "1"]) == 0
    streams = capsys.readouterr()
    assert "2 of 2 cells finished" in streams.out
    said = f"an earlier attempt moved to {two.workdir.parent / 'previous-1'}/"
    (line,) = (line for line in streams.err.splitlines() if said in line)
    assert two.name in line
    moved = two.workdir.parent / "previous-1" / two.workdir.name / "config.json"
    assert moved.read_text() == workdirs.config_text(other)
    assert (two.workdir / "config.json").read_text() == workdirs.config_text(two.config)
    before = contents(folder)
    assert reproduce.main([*command, "--cell", "0", "1", "--config.train.seed=5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {one.folder}: holds results with train.seed = 0")
    assert "another --out" in error and error.count("\n") == 1
    assert contents(folder) == before


def copies(plan, count):
    """Cells that differ in their names only."""
    return [
        plan._replace(
            method=f"m{i:02}",
            workdir=plan.workdir.with_name(f"m{i:02}"),
            folder=plan.folder.with_name(f"m{i:02}"),
            command=[*plan.command[:-1], f"--workdir={plan.workdir.with_name(f'm{i:02}')}"],
        )
        for i in range(count)
    ]


def same_results(some, decisions):
    """Whether every cell did each decision once, in order."""
    # Those of workdirs: results have at most 50 rows.
    tables = {(plan.workdir / "metrics.csv").read_text() for plan in some}
    (text,) = tables
    return len(text.splitlines()) == decisions + 1 and all(
        cell.read(plan.folder / "run.json")["exit_code"] == 0 for plan in some
    )


if __name__ == "__main__":
    plans.make_plans = pretending(int(sys.argv[1]), float(sys.argv[2]))
    sys.exit(reproduce.main(sys.argv[3:]))
