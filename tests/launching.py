"""Suites whose cells train in milliseconds, for the tests of launchers."""

import argparse
import sys
from pathlib import Path

from experiments import parsers, suites
from experiments.launchers import cell, plans, study
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
