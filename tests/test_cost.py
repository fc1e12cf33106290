"""What a run is said to cost, compared with stored runs, and what is left of it."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from experiments import run
from experiments.benchmarks import speed
from experiments.configs import dm_control
from pomcp_jax import config as config_lib
from pomcp_jax import presets
from pomcp_jax.config import Config
from pomcp_jax.running import bookkeeping, cost
from pomcp_jax.running.cost import Machine, Todo
from pomcp_jax.running.run import Run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
SIZES = {
    "cartpole-swingup": (5, 1), "pendulum-swingup": (3, 1), "reacher-easy": (6, 2),
    "dog-stand": (223, 38), "walker-walk": (24, 6), "cheetah-run": (17, 6),
    "finger-spin": (9, 2), "quadruped-walk": (78, 12),
}  # fmt: skip
CORE = 95e9
"""Operations per second of one core of the machine of the stored runs (docs/benchmarks.md)."""


def env_of(task):
    observation, action = SIZES[task]
    return SimpleNamespace(observation_size=observation, action_size=action, episode_length=500)


def stored():
    """Folders of stored runs on a CPU, on tasks whose environment is estimated: dm_control's."""
    for path in sorted(RESULTS.glob("**/run.json")):
        about = json.loads(path.read_text())
        task = json.loads((path.parent / "config.json").read_text())["env"]["task"]
        if about["device"].startswith("cpu") and "/" not in task:
            yield pytest.param(
                path.parent, about["cpu_cores"], id=str(path.parent)[len(str(RESULTS)) + 1 :]
            )


@pytest.mark.parametrize(("folder", "cores"), [*stored()])
def test_stored_runs_took_what_is_estimated_within_a_factor_of_two(folder, cores):
    known = config_lib.flatten(Config())
    values = config_lib.flatten(json.loads((folder / "config.json").read_text()))
    config = config_lib.replace(Config(), {k: v for k, v in values.items() if k in known})
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss/model"] and row["plan/std"]]
    # The faster chunks: others trained on the same cores at times (docs/results.md).
    took = 1 / np.quantile([float(row["decisions_per_second"]) for row in rows], 0.9)
    machine = Machine(CORE * cores, cores)
    estimate = cost.estimate(config, env_of(config.env.task), machine)
    assert 0.5 < estimate.decision / took < 2


def benchmarks():
    page = (ROOT / "docs" / "benchmarks.md").read_text().partition("## One GPU")[0]
    number = r"([\d.,]+)"
    line = (
        rf"^\| (5M|small) \| (plan|plan, batch 8|update) \| {number} \| {number} \| \d+ \| (\d+) "
    )
    return re.findall(line, page, re.M)


@pytest.mark.parametrize(("size", "what", "gflop", "ms", "rate"), benchmarks())
def test_benchmarks_are_estimated_within_a_factor_of_two(size, what, gflop, ms, rate):
    agent, sizes = speed.agent_config(size), (speed.OBS, speed.ACTIONS)
    work = cost.update(agent, *sizes) if what == "update" else cost.plan(agent, *sizes)
    times = 8 if "8" in what else 1
    assert times * work.products == pytest.approx(1e9 * float(gflop), rel=0.01)
    took = times * work.seconds(Machine(1e9 * float(rate), 2)) + cost.CALL
    assert 0.5 < took / (1e-3 * float(ms)) < 2


def test_benchmarks_are_found():
    assert len(benchmarks()) == 6 and len([*stored()]) > 30


def test_replanning_and_seeds_cost_more():
    env, machine = env_of("reacher-easy"), Machine(CORE, 1)

    def decision(**changes):
        return cost.estimate(tiny.run(**changes), env, machine).decision

    base = decision()
    often = {"replan__interval": 1, "replan__batch_size": 20}
    assert decision(agent_changes=often) > 1.2 * base
    three = decision(train__num_seeds=3)
    assert three == pytest.approx(3 * base, rel=0.05)


def test_seeds_on_devices_of_their_own_cost_less():
    """Small models leave a second core idle; large products of one seed use it already."""
    env, machine = env_of("reacher-easy"), Machine(2 * CORE, 2)

    def decision(config, seeds, devices):
        config = config_lib.replace(config, {"train.num_seeds": seeds})
        return cost.estimate(config, env, machine, devices).decision

    one = decision(tiny.run(), 1, 1)
    assert decision(tiny.run(), 2, 2) == pytest.approx(one, rel=0.1)
    # Padding is computed too, and devices beyond the cores help nobody.
    assert decision(tiny.run(), 3, 2) == decision(tiny.run(), 4, 2)
    assert decision(tiny.run(), 8, 8) == pytest.approx(decision(tiny.run(), 8, 2))
    assert 1.3 * one < decision(Config(), 2, 2) / decision(Config(), 1, 1) * one < 2 * one


@pytest.mark.parametrize(
    ("interval", "done", "last", "at", "left"),
    [
        (25, 0, 0, -1, Todo(100, 4)),  # the last of them at the end
        (30, 0, 0, -1, Todo(100, 4)),  # three, and one at the end
        (30, 95, 90, 90, Todo(5, 1)),
        (30, 100, 90, 100, Todo(0, 0)),
        (0, 40, 0, -1, Todo(60, 1)),
        (25, 100, 100, 100, Todo(0, 0)),
        (0, 100, 0, 100, Todo(0, 0)),
        (0, 100, 0, -1, Todo(0, 1)),
    ],
)
def test_what_is_left(interval, done, last, at, left):
    config = tiny.run(train__total_decisions=100, train__eval_decisions=interval)
    assert cost.todo(config, done, last, at) == left
    assert left.seconds(2.0, 10.0) == 2 * left.decisions + 10 * left.evaluations


def test_time_left_counts_evaluations():
    run = object.__new__(Run)  # of a run only what its time depends on
    env = SimpleNamespace(episode_length=9)
    run.functions = SimpleNamespace(program=SimpleNamespace(env=env))
    run.config = tiny.run(train__total_decisions=100, train__eval_decisions=25)
    run.books, run.done = bookkeeping.fresh(1, None), 0
    run.estimate, run.pace, run.evaluation_seconds = None, 0.0, 0.0
    assert np.isnan(run.seconds_left())  # an accelerator, before the first chunk of training
    run.pace = 1.0
    assert run.seconds_left() == 100 + 4 * 10 * run.config.env.num_envs  # 9 + 1 steps
    run.estimate = cost.Estimate(decision=0.5, update=0.1, evaluation=100.0)
    assert run.seconds_left() == 100 + 4 * 200.0  # as wrong as the estimate of a decision
    run.evaluation_seconds = 30.0
    assert run.seconds_left() == 100 + 4 * 30.0
    run.pace, run.evaluation_seconds = 0.0, 0.0
    assert run.seconds_left() == 50 + 4 * 100.0


def test_the_line_for_the_user():
    config = config_lib.from_dict(Config, dm_control.get_config("walker-walk").to_dict())
    env = SimpleNamespace(observation_size=24, action_size=6, episode_length=500)
    estimate = cost.estimate(config, env, Machine(180e9, 2))
    assert 0.4 < estimate.decision < 0.8  # 0.58 s in docs/benchmarks.md
    said = cost.line(config, env, Todo(500_000, 21), estimate)
    assert re.fullmatch(
        r"cost: about 0\.\d+ s a decision, 500,000 decisions and 21 evaluations = \d\.\d days on"
        r" \d+ CPU cores? \(estimated within a factor of two\)",
        said,
    )
    for task in ("brax/hopper", "reach"):
        own = config_lib.replace(config, {"env.task": task, "train.num_seeds": 3})
        said = cost.line(own, env, Todo(5, 1), estimate)
        assert "a decision of 3 seeds, 5 decisions = " in said and "without the environment" in said
    said = cost.line(config, env, Todo(500_000, 21), None)
    assert said.startswith("cost: 69.3 GFLOP a decision and seed; the time on this device is known")


def test_long_runs_on_a_cpu_get_a_cheaper_proposal(monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda: Machine(180e9, 2))
    config = config_lib.from_dict(Config, dm_control.get_config("cheetah-run").to_dict())
    env = SimpleNamespace(
        name="cheetah-run", observation_size=17, action_size=6, episode_length=500
    )
    trainer = SimpleNamespace(
        config=config, functions=SimpleNamespace(program=SimpleNamespace(env=env, mesh=None))
    )
    said = run.cheaper(trainer)
    assert "--config=experiments/configs/small.py:cheetah-run has a model for CPUs" in said
    assert re.search(r"about [\d.]+ minutes for one seed and 50,000 decisions", said)
    trainer.config = config_lib.replace(config, {"train.total_decisions": 5_000})
    assert run.cheaper(trainer) == ""
    monkeypatch.setattr(cost, "measure", lambda: None)  # an accelerator
    trainer.config = config
    assert run.cheaper(trainer) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0163, "16 ms"),
        (0.0999, "0.1 s"),
        (0.584, "0.58 s"),
        (12.3, "12 s"),
        (720, "12 minutes"),
        (293_760, "3.4 days"),
    ],
)
def test_durations_have_two_digits(seconds, text):
    assert cost.text(seconds) == text


def test_every_preset_and_size_has_a_cost():
    for preset in presets.PRESETS:
        work = [
            cost.update(presets.with_size(presets.get(preset), size), 24, 6).products
            for size in presets.SIZES
        ]
        assert work == sorted(work)


def test_the_machine_is_measured():
    machine = cost.measure(0.0)
    assert machine.rate > 1e8 and machine.cores >= 1
