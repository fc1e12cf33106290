"""Sweeps: rows with different settings in one program, and the command that trains a grid."""

import csv
import dataclasses
import functools
import json
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_cli import DEBUG, ENVIRONMENT, ROOT, call, command
from test_train import assert_same, program

from experiments import sweep
from pomcp_jax import cells as cells_lib
from pomcp_jax import checkpoint, controller, seed_axis, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import statistics, sweep_figures
from pomcp_jax.running import sweeps, workdirs
from pomcp_jax.running.background import Control
from pomcp_jax.running.health import Diverged
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.sweeps import CellResult
from pomcp_jax.running.trainer import Trainer

CELLS = (
    {"optimizer__learning_rate": 3e-4, "policy__kl_coef": 0.1, "mppi__temperature": 0.5},
    {"optimizer__learning_rate": 1e-3, "policy__kl_coef": 5.0, "mppi__temperature": 2.0},
)
SEEDS = (3, 4, 3, 4)


def joined(*changes):
    return seed_axis.stack(
        [tiny.run(agent_changes=c, train__num_seeds=len(changes)) for c in changes]
    )


def play(prog, config, works, seeds=None):
    seeds = None if seeds is None else jnp.array(seeds, jnp.int32)
    state = prog.init(config, seeds)
    for work in works:
        state, _ = prog.chunk(state, config, work)
    return jax.device_get(state)


def rows(state, index):
    """Parameters, replay and counters of a row, including keys."""
    held = (state.agent, state.replay.rows, state.plan, state.stats, state.timestep)
    lead = len(state.keys)
    cut = lambda x: x.reshape(lead, -1, *x.shape[1:])[index]  # noqa: E731
    return jax.tree.map(cut, held), jax.random.key_data(state.keys)[index]


@functools.cache
def base():
    """Two cells x two seeds, trained to the end, for several tests."""
    first, second = CELLS
    config = joined(first, first, second, second)
    prog = program(config)
    works = prog.seeding + prog.pretraining + prog.training
    return config, prog, play(prog, config, works, SEEDS)


def test_a_sweep_is_traced_once():
    _, prog, state = base()
    assert prog.chunk._cache_size() == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agent.params))


def test_cells_share_their_seeds_and_differ_in_what_they_learn():
    _, _, state = base()
    keys = jax.random.key_data(state.keys)
    alone = jax.vmap(lambda seed: jax.random.key_data(jax.random.key(seed)))(jnp.array(SEEDS))
    np.testing.assert_array_equal(keys, alone)
    seeding = state.replay.rows.action[:, :10]  # 20 random decisions of two environments
    np.testing.assert_array_equal(seeding[:2], seeding[2:])
    assert np.any(seeding[0] != seeding[1])
    moved = jax.tree.map(lambda x: np.max(np.abs(x[0] - x[2])), state.agent.params.policy)
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("cell", [0, 1])
def test_a_cell_is_the_ordinary_run_of_its_settings(cell):
    """Up to the rounding of batched products, until that has changed which elite is drawn."""
    config, prog, _ = base()
    works = prog.seeding + prog.pretraining
    together = play(prog, config, works, SEEDS)
    ordinary = tiny.run(agent_changes=CELLS[cell], train__num_seeds=2, train__seed=SEEDS[0])
    alone = play(ordinary_program(), ordinary, works)
    mine = slice(2 * cell, 2 * cell + 2)
    np.testing.assert_array_equal(
        jax.random.key_data(together.keys)[mine], jax.random.key_data(alone.keys)
    )
    for part in ("agent", "plan", "stats"):
        cut = jax.tree.map(lambda x: x[mine], getattr(together, part))
        assert_same(cut, getattr(alone, part), exact=False)
    cut = jax.tree.map(lambda x: x[mine], together.replay.rows)
    assert_same(cut, alone.replay.rows, exact=False)


@functools.cache
def ordinary_program():
    return program(tiny.run(train__num_seeds=2))


def test_a_row_that_diverges_changes_no_bit_of_the_others():
    config, prog, healthy = base()
    first, second = CELLS
    broken = joined(first, first, second, second | {"optimizer__learning_rate": 1e30})
    works = prog.seeding + prog.pretraining + prog.training
    state = play(prog, broken, works, SEEDS)
    assert prog.chunk._cache_size() == 1
    faults = state.agent.faults
    assert faults.consecutive[3] > 10 and np.all(faults.total[:3] == 0)
    for row in range(3):
        assert_same(rows(state, row), rows(healthy, row))
    # Its last finite parameters are kept.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agent.params))


def test_over_seeds_maps_what_has_the_axis_and_only_that():
    configs = [config_lib.replace(Config(), {"agent.policy.kl_coef": v}) for v in (1.0, 2.0, 3.0)]
    config = seed_axis.stack(configs).agent

    def affine(config, x):
        assert jnp.ndim(config.policy.kl_coef) == jnp.ndim(config.optimizer.rho) == 0
        return config.policy.kl_coef * x + config.optimizer.rho

    x = jnp.array([[1.0, 2.0]] * 3)
    out = seed_axis.over_seeds(affine, config, x)
    np.testing.assert_allclose(out, [[1.5, 2.5], [2.5, 4.5], [3.5, 6.5]])
    one = seed_axis.over_seeds(affine, configs[1].agent, x[:1])
    np.testing.assert_allclose(one, out[1:2])
    assert config.policy.kl_coef.weak_type  # promotes like the number it stands for


def test_stacked_rows_come_back_as_they_were():
    values = (0.1, 1e-3, 9.0)
    configs = [config_lib.replace(Config(), {"agent.optimizer.rho": v}) for v in values]
    assert seed_axis.unstack(seed_axis.stack(configs), 3) == configs
    assert seed_axis.stack(configs[:1] * 3) == configs[0]
    assert seed_axis.unstack(configs[0], 3) == configs[:1]


def test_rows_that_cannot_share_a_program_are_refused():
    other = config_lib.replace(Config(), {"agent.mppi.horizon": 5})
    with pytest.raises(ConfigError, match=r"agent\.mppi\.horizon = 5: must be 3"):
        seed_axis.stack([Config(), other])
    first, second = CELLS
    config = joined(first, second)
    three = dataclasses.replace(config.train, num_seeds=3)
    with pytest.raises(ConfigError, match=r"agent\.mppi\.temperature: has shape \(2,\).*3 rows"):
        program(dataclasses.replace(config, train=three))
    bad = joined(first, second | {"mppi__temperature": -1.0})
    with pytest.raises(ConfigError, match=r"agent\.mppi\.temperature = -1\.0"):
        program(bad)


def test_grids_span_products_in_order():
    words = sweep.parse_grid(["policy.kl_coef=0, 0.1 ;agent.mppi.temperature=1e0,2"])
    grid = cells_lib.check_grid(words, Config())
    assert grid == {"agent.policy.kl_coef": (0, 0.1), "agent.mppi.temperature": (1, 2)}
    base = tiny.run(train__num_seeds=3, train__seed=7)
    cells = cells_lib.cells(base, grid)
    assert [cell.name for cell in cells] == [
        "policy.kl_coef=0,mppi.temperature=1", "policy.kl_coef=0,mppi.temperature=2",
        "policy.kl_coef=0.1,mppi.temperature=1", "policy.kl_coef=0.1,mppi.temperature=2",
    ]  # fmt: skip
    config = cells_lib.joined(cells)
    assert config.train.num_seeds == 12 and list(cells[1].seeds) == [7, 8, 9]
    for cell in cells:
        np.testing.assert_allclose(
            config.agent.policy.kl_coef[cell.rows], cell.values["policy.kl_coef"]
        )
        assert cell.config.agent.policy.kl_coef == cell.values["policy.kl_coef"]
    assert isinstance(config.agent.optimizer.learning_rate, float)


BAD = {
    "no grid": ([], "--grid: missing"),
    "static number": (["--grid=mppi.horizon=3,5"], "--config.agent.mppi.horizon=VALUE"),
    "static float": (["--grid=world_model.dropout=0,0.1"], "agent.world_model.dropout"),
    "static word": (["--grid=policy.prior=none"], "agent.policy.prior"),
    "training": (["--grid=train.num_seeds=1,2"], "train.num_seeds"),
    "field": (["--grid=policy.kl_cof=1"], "did you mean policy.kl_coef?"),
    "number": (["--grid=policy.kl_coef=1,x"], "agent.policy.kl_coef = 'x': must be a number"),
    "not finite": (["--grid=policy.kl_coef=1,nan"], "cell policy.kl_coef=nan: agent.policy"),
    "no values": (["--grid=policy.kl_coef"], "FIELD=VALUE,VALUE"),
    "twice": (["--grid=policy.kl_coef=1,1.0"], "agent.policy.kl_coef = 1 appears twice"),
    "field twice": (["--grid=policy.kl_coef=1;agent.policy.kl_coef=2"], "appears twice"),
    "and override": (
        ["--grid=policy.kl_coef=1,2", "--config.agent.policy.kl_coef=3"], "is swept by --grid"),
    "seeds": (["--grid=policy.kl_coef=1", "--seeds=0"], "--seeds = 0"),
    "seeds type": (["--grid=policy.kl_coef=1", "--seeds=x"], "--seeds"),
    "cell": (
        ["--grid=optimizer.rho=0.5;optimizer.discount=0.9,1.5"],
        "cell optimizer.rho=0.5,optimizer.discount=1.5: agent.optimizer.discount = 1.5"),
    "flag": (["--gird=policy.kl_coef=1"], "gird"),
    "memory": (
        ["--grid=policy.kl_coef=1,2", "--seeds=3", "--config.train.capacity=900000000"],
        "2 cells x 3 seeds"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments, expected = BAD[case]
    workdir = tmp_path / "sweep"
    code = sweep.main(["sweep", DEBUG, *arguments, f"--workdir={workdir}"])
    text = capsys.readouterr()
    # The settings come before what only the built environments can tell.
    assert code == 2 and (not text.out or case == "memory" and text.out.startswith("preset "))
    assert text.err.startswith("error: ") and text.err.count("\n") == 1 and expected in text.err
    assert not workdir.exists()


def test_help_and_print_config(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sweep.main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--grid" in text and "experiments.sweep" in text and "--help=TOPIC" in text
    assert sweep.main(["sweep", DEBUG, "--grid=policy.kl_coef=0,9", "--print_config"]) == 0
    assert "agent.policy.kl_coef = 0, 9  (swept)" in capsys.readouterr().out


def test_interval_is_students_t():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    # t(0.975, 2) = 4.302653 (tables), mean 7/3, standard error sqrt(7/3) / sqrt(3).
    half = 4.302653 * np.sqrt(7 / 3 / 3)
    np.testing.assert_allclose(statistics.bounds(values), [7 / 3 - half, 7 / 3 + half], 1e-6)
    assert np.isnan(statistics.bounds(np.array([1.0]))).all()


def test_a_diverged_seed_counts_in_no_mean():
    grid = cells_lib.check_grid({"policy.kl_coef": [0.5]}, Config())
    cell = cells_lib.cells(tiny.run(train__num_seeds=3), grid)[0]
    returns = np.array([1.0, 100.0, 3.0])
    outcome = CellResult(cell, returns, returns, returns, {1: Diverged(40, "policy")})
    row = sweeps.summary_row(outcome)
    assert row["eval/return"] == row["train/return"] == 2.0
    assert row["policy.kl_coef"] == 0.5 and row["seeds"] == 3 and row["diverged_seeds"] == 1
    assert row["diverged"] == "seed 1: policy at 40 decisions"
    assert "1 of 3" in sweeps.table([outcome])


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A whole sweep of two cells x two seeds; the second cell diverges."""
    workdir = tmp_path_factory.mktemp("sweeps") / "debug"
    grid_flag = "--grid=optimizer.learning_rate=1e-3,1e30"
    done = call(DEBUG, grid_flag, "--seeds=2", f"--workdir={workdir}", module="experiments.sweep")
    assert done.returncode == 0, done.stderr
    good, bad = (workdir / f"optimizer.learning_rate={v}" for v in ("0.001", "1e+30"))
    return workdir, done, good, bad


def test_a_sweep_leaves_everything_it_promises(swept):
    workdir, done, good, bad = swept
    assert {p.name for p in workdir.iterdir()} == {
        "sweep.json", "summary.csv", "sweep.png", "config.json", "checkpoints",
        good.name, bad.name,
    }  # fmt: skip
    assert (workdir / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    for cell, rate in ((good, 1e-3), (bad, 1e30)):
        config = json.loads((cell / "config.json").read_text())
        assert config["agent"]["optimizer"]["learning_rate"] == rate
        assert config["train"]["num_seeds"] == 2
    summary = table(workdir / "summary.csv")
    assert [row["cell"] for row in summary] == [good.name, bad.name]
    assert [row["diverged_seeds"] for row in summary] == ["0", "2"]
    low, mean, high = (float(summary[0][f"eval/{c}"]) for c in ("low", "return", "high"))
    assert low < mean < high and summary[1]["eval/return"] == ""
    assert good.name in done.stdout and "2 of 2" in done.stdout
    assert "x 4 rows" in done.stderr and "others continue" in done.stderr


def test_a_cell_that_diverges_is_marked_and_the_others_go_on(swept):
    workdir, _, good, bad = swept
    metrics = {cell: table(cell / "metrics.csv") for cell in (good, bad)}
    assert len(metrics[good]) == 2 * (1 + 1 + 5)
    assert [row["broken"] for row in metrics[bad]][-2:] == ["1", "1"]
    assert {row["broken"] for row in metrics[good]} == {"0"}
    last = [json.loads(line) for line in (good / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["seed"] == 1 and last["updates"] == 20 + 250 and last["loss/model"] > 0
    actors = [row["actor"] for row in table(good / "evaluations.csv")]
    assert actors == ["planner"] * 4 + ["policy"] * 2
    about = {cell: json.loads((cell / "run.json").read_text()) for cell in (good, bad)}
    assert about[good]["exit_code"] == 0 and about[good]["status"] == "done"
    assert about[bad]["exit_code"] == 3 and set(about[bad]["diverged"]) == {"0", "1"}
    assert about[bad]["diverged"]["0"]["term"] in train.agent.FAULT_TERMS
    assert json.loads((workdir / "sweep.json").read_text())["exit_code"] == 0


def test_cells_can_be_drawn_like_runs(swept, tmp_path):
    out = tmp_path / "curve.png"
    done = call(str(swept[2]), f"--out={out}", module="experiments.plot")
    assert done.returncode == 0 and out.read_bytes()[:4] == b"\x89PNG"


def test_ctrl_c_ends_a_sweep_cleanly(swept, tmp_path):
    """In the folder of an earlier sweep, which is moved aside on request; then it resumes."""
    workdir = tmp_path / "sweep"
    cell = workdir / "optimizer.learning_rate=0.001"
    old = workdir / "mppi.temperature=2"
    old.mkdir(parents=True)
    (workdir / "sweep.json").write_text(json.dumps({"cells": [old.name]}))
    process = subprocess.Popen(
        command(
            DEBUG, "--grid=optimizer.learning_rate=1e-3,2e-3", "--seeds=2",
            f"--workdir={workdir}", "--config.train.total_decisions=1000000", "--resume=never",
            module="experiments.sweep",
        ),
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    metrics, deadline = cell / "metrics.jsonl", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 6:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopped by SIGINT" in out
    assert json.loads((cell / "run.json").read_text())["exit_code"] == 130
    assert len(table(workdir / "summary.csv")) == 2 and (workdir / "sweep.png").exists()
    assert (workdir / "previous-1" / old.name).is_dir() and not old.exists()


GRID = {"policy.kl_coef": (0.1, 5.0)}
LONG_FIELDS = (
    "optimizer.encoder_rate_scale", "optimizer.learning_rate", "optimizer.target_rate",
    "optimizer.rho", "policy.entropy_coef", "policy.kl_coef", "policy.q_coef",
)  # fmt: skip
SWEEP = tiny.run(
    train__num_seeds=2, train__eval_decisions=20, train__checkpoint_decisions=20,
    train__max_bad_updates=3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_program_for_equal_sweeps():
    """Trainers of equal configurations share their compiled functions."""
    with tiny.shared_programs():
        yield


def make_trainer(workdir, config=SWEEP, grid=GRID, **options):
    control = Control(Progress(interval=float("inf")))
    return Trainer(config, workdir, grid=grid, **{"control": control, **options})


def cell_tables(workdir):
    clocks = ("seconds", "decisions_per_second", "frames_per_second")
    return [
        [{k: v for k, v in row.items() if k not in clocks} for row in table(workdir / cell / name)]
        for cell in ("policy.kl_coef=0.1", "policy.kl_coef=5")
        for name in ("metrics.csv", "evaluations.csv")
    ]


def test_a_sweep_from_python_resumes_bit_for_bit(tmp_path):
    told = []
    whole = make_trainer(tmp_path / "whole", on_row=[told.append]).run()
    assert whole.code == 0 and whole.evaluation.shape == (4,)
    assert [found.cell.values for found in whole.cells] == [
        {"policy.kl_coef": 0.1}, {"policy.kl_coef": 5.0},
    ]  # fmt: skip
    np.testing.assert_array_equal(whole.cells[1].planner, whole.evaluation[2:])
    assert [(row["cell"], row["seed"]) for row in told[:4]] == [
        ("policy.kl_coef=0.1", 0), ("policy.kl_coef=0.1", 1),
        ("policy.kl_coef=5", 0), ("policy.kl_coef=5", 1),
    ]  # fmt: skip
    again = make_trainer(tmp_path / "whole").run()
    assert again.nothing_to_do and again.decisions == 60
    np.testing.assert_array_equal(again.evaluation, whole.evaluation)
    agents = controller.load(tmp_path / "whole" / "policy.kl_coef=5", "newest")
    assert agents.config == whole.cells[1].cell.config
    both = checkpoint.restore(tmp_path / "whole" / "checkpoints").state
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[2:]), agents.state, both)
    with pytest.raises(checkpoint.CheckpointError, match="holds a sweep; choose a cell: policy"):
        controller.load(tmp_path / "whole")
    trainer = make_trainer(tmp_path / "cut")
    trainer.on_row = [lambda row: row["decisions"] >= 30 and trainer.control.request(5, "enough")]
    assert trainer.run().code == 5
    trainer.on_row = ()
    assert trainer.run().decisions == 60
    assert cell_tables(tmp_path / "cut") == cell_tables(tmp_path / "whole")


def test_rows_of_a_sweep_are_reset_when_asked(tmp_path):
    """A learning rate at which a cell always diverges: reset once, then dropped."""
    config = config_lib.replace(
        SWEEP, {"train.on_broken_seed": "reset", "train.max_seed_resets": 1}
    )
    outcome = make_trainer(tmp_path, config, {"optimizer.learning_rate": [1e-3, 1e30]}).run()
    assert outcome.code == 0 and outcome.text == "done, 2 of 4 rows diverged"
    rows = table(tmp_path / "optimizer.learning_rate=1e+30" / "metrics.csv")
    assert {row["resets"] for row in rows[-2:]} == {"1"}
    assert outcome.cells[0].diverged == {} and set(outcome.cells[1].diverged) == {0, 1}


def test_the_folder_of_a_sweep_is_for_that_sweep(tmp_path):
    first = config_lib.replace(SWEEP, {"agent.policy.kl_coef": 0.1})
    (tmp_path / "config.json").write_text(workdirs.config_text(first))
    with pytest.raises(ConfigError, match="holds a run, no sweep"):
        make_trainer(tmp_path)
    record = {"grid": {"agent.policy.kl_coef": [0.1, 5.0]}, "cells": ["a"]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    make_trainer(tmp_path)
    with pytest.raises(ConfigError, match="holds a sweep of agent.policy.kl_coef=0.1,5.0"):
        make_trainer(tmp_path, grid={"policy.kl_coef": (0.1, 1.0)})
    with pytest.raises(ConfigError, match="holds a sweep; choose another folder"):
        make_trainer(tmp_path, grid=None)
    swapped = {"mppi.temperature": (1.0, 2.0), "policy.kl_coef": (0.1, 5.0)}
    record["grid"] = {f"agent.{name}": swapped[name] for name in reversed(swapped)}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="of agent.policy.kl_coef=0.1,5.0; agent.mppi"):
        make_trainer(tmp_path, grid=swapped)
    more = config_lib.replace(SWEEP, {"train.num_seeds": 3})
    record["grid"] = {"agent.policy.kl_coef": [0.1, 5.0]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="train.num_seeds = 2, this one has 3; choose another"):
        make_trainer(tmp_path, more)
    (tmp_path / "policy.kl_coef=5").write_text("a file")
    with pytest.raises(ConfigError, match="its policy.kl_coef=5 is no folder"):
        make_trainer(tmp_path)
    with pytest.raises(ConfigError, match="resume = 'change_seeds': not in a sweep"):
        make_trainer(tmp_path, resume="change_seeds")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"policy.kl_coef": 1.0}, "must be a list of numbers"),
        ({"policy.kl_coef": "0.1"}, "must be a list of numbers"),
        ({"policy.kl_coef": []}, "must be a list of numbers"),
        ({"policy.kl_coef": [True, 2.0]}, "True: must be a number"),
        ({"policy.kl_coef": [1], "agent.policy.kl_coef": [2]}, "appears twice"),
        ({"policy.kl_coef": [10**400]}, "must be a number"),
        ({name: [1 / 3, 1 / 7] for name in LONG_FIELDS}, "has a name of .* bytes; must be <= 255"),
    ],
)
def test_grids_that_are_none(grid, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path / "sweep", grid=grid)


def test_a_shared_value_that_fits_no_cell_is_not_needed(tmp_path):
    """The configuration's own value of a swept field would not be valid."""
    config = config_lib.replace(SWEEP, {"agent.optimizer.discount": 1.5})
    trainer = make_trainer(tmp_path, config, {"optimizer.discount": (0.9, 0.95)})
    assert trainer.options.config.agent.optimizer.discount == 0.9


def test_names_outside_of_a_workdir_are_not_moved(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": ["../..", "", "a/b"]}))
    assert workdirs.swept(tmp_path, "x").folders == ["b"]


def test_a_sweep_whose_results_cannot_be_written_is_not_done(tmp_path):
    """And the next start writes them."""
    outcome = make_trainer(tmp_path).run()
    (tmp_path / "summary.csv").unlink()
    (tmp_path / "sweep.json").write_text(
        json.dumps(json.loads((tmp_path / "sweep.json").read_text()) | {"exit_code": None})
    )
    assert make_trainer(tmp_path).run().nothing_to_do
    assert len(table(tmp_path / "summary.csv")) == 2
    for found in outcome.cells:
        about = json.loads((found.cell.folder(tmp_path) / "run.json").read_text())
        assert about["exit_code"] == 0 and about["status"] == "done"


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ([1, 1], "one seed"),
        ([2, 2], "mean over seeds; dots: seeds"),  # no interval is drawn
        ([3, 5], "mean over seeds, 95 % interval; dots: seeds"),
        ([2, 5], "mean over seeds, 95 % interval (of 3 seeds or more); dots: seeds"),
        ([0, 0], "one seed"),
    ],
)
def test_the_picture_says_what_it_draws(counts, title):
    cells = [
        sweep_figures.SweptCell("a", None, {}, np.zeros(count), frozenset()) for count in counts
    ]
    assert sweep_figures._title(cells) == title
