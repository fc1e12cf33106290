"""Resuming with another number of seeds: dropped or added, on request only."""

import functools
import shutil

import jax
import numpy as np
import pytest
from test_resume import Interruption, Tiny, assert_same_end, table

from pomcp_jax import checkpoint
from pomcp_jax import state_edits as resume_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.running import add_seeds, process, starting
from pomcp_jax.running import functions as functions_lib

EXACT = ("decisions", "frames", "seed", "updates", "train/episodes", "refused_updates", "broken")
"""Columns that do not depend on rounding."""


@functools.cache
def tiny_run(num_seeds, seed=0):
    return Tiny(train__num_seeds=num_seeds, train__seed=seed)


@pytest.fixture(scope="module", autouse=True)
def one_commit_and_one_compilation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "commit", lambda: "0123456789ab")
        patch.setattr(add_seeds, "build", functools.cache(functions_lib.build))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs of one and of three seeds."""
    folder = tmp_path_factory.mktemp("whole")
    runs = {k: tiny_run(k).sit(folder / str(k)) for k in (1, 3)}
    return folder, runs


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run of two seeds that stopped at 40 decisions."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    run = tiny_run(2).sit(workdir, Interruption(12))
    assert run.done == 40 and run.books.pending is None
    return workdir


def leaves(state):
    shot = checkpoint.snapshot(state)
    return shot.agent | shot.run


def start(num_seeds, workdir):
    tiny = tiny_run(num_seeds)
    return starting.begin(tiny.options(workdir, resume="change_seeds"), tiny.functions.program)


def part(leaf, index, num_seeds):
    return leaf if leaf.ndim == 0 else leaf.reshape(num_seeds, -1)[index]


def same_rows(path, other, which):
    """Counters of some seeds are those of another run; its other columns are there."""
    ours, theirs = ([r for r in table(p) if int(r["seed"]) in which] for p in (path, other))
    ours, theirs = (sorted(rows, key=key) for rows in (ours, theirs))
    assert len(ours) == len(theirs) > 0
    for name in set(EXACT) & set(ours[0]):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name
    for mine, other in zip(ours, theirs, strict=True):
        assert [k for k, v in mine.items() if v] == [k for k, v in other.items() if v]


def key(row):
    return int(row["seed"]), int(row["decisions"]), int(row.get("updates", 0)), row.get("actor", "")


def test_without_the_flag_it_is_refused_by_its_name(halfway, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for k in (1, 3):
        with pytest.raises(ConfigError, match=rf"num_seeds = 2, this one has {k}; --resume=change"):
            tiny_run(k).sit(workdir)
        # As after a kill right after the change: the checkpoint itself records it.
        with pytest.raises(ConfigError, match=rf"has 2 seeds, train.num_seeds is {k}; --resume=ch"):
            tiny = tiny_run(k)
            starting.begin(tiny.options(workdir), tiny.functions.program)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_fewer_seeds_are_the_first_ones(halfway, whole, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    saved = leaves(start(2, workdir).state)
    found = start(1, workdir)
    assert any(note.startswith("dropped seeds 1 to 1") for note in found.notes)
    for name, leaf in leaves(found.state).items():
        np.testing.assert_array_equal(part(leaf, 0, 1), part(saved[name], 0, 2), name)
    run = tiny_run(1).sit(workdir, resume="change_seeds")
    assert run.done == 60 and len(run.books.returns) == 1
    same_rows(workdir / "metrics.csv", whole[0] / "1" / "metrics.csv", {0})
    assert len([r for r in table(workdir / "metrics.csv") if r["seed"] == "1"]) == 5
    # Now it is a complete run of one seed, without the flag too.
    assert tiny_run(1).sit(workdir).state is None


def test_more_seeds_catch_up_and_join(halfway, whole, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    saved = leaves(start(2, workdir).state)
    found = start(3, workdir)
    assert found.missing_seeds == 1
    # The new seed's events come first, then those of all.
    joined = tiny_run(3).sit(workdir, Interruption(12), resume="change_seeds")
    assert joined.done == 40 and joined.stopped is not None
    alone = tiny_run(1, seed=2).sit(tmp_path / "alone", Interruption(12))
    assert alone.done == 40
    theirs, ours = leaves(alone.state), leaves(joined.state)
    for name, leaf in ours.items():
        for i in range(2):
            np.testing.assert_array_equal(part(leaf, i, 3), part(saved[name], i, 2), name)
        np.testing.assert_array_equal(part(leaf, 2, 3), part(theirs[name], 0, 1), name)
    # It is saved with all of them: no flag is needed any more.
    run = tiny_run(3).sit(workdir)
    assert run.done == 60
    for name in ("metrics.csv", "evaluations.csv"):
        same_rows(workdir / name, whole[0] / "3" / name, {0, 1, 2})
    last = checkpoint.read(workdir / "checkpoints", 60)
    assert last.sizes[2] == len(last.host["returns"]) == len(last.host["resets"]) == 3


def test_an_interruption_while_they_catch_up_loses_nothing(halfway, tmp_path):
    workdirs = [shutil.copytree(halfway, tmp_path / name) for name in ("cut", "whole")]
    for at in (2, 4):
        cut = Interruption(at)
        run = tiny_run(3).sit(workdirs[0], cut, resume="change_seeds")
        assert run.stopped is not None and run.state is None
        assert checkpoint.read(workdirs[0] / "checkpoints", 40).sizes[2] == 2
    for workdir in workdirs:
        assert tiny_run(3).sit(workdir, resume="change_seeds").done == 60
    assert_same_end(*workdirs)


def test_seeds_can_be_added_to_a_finished_run_and_dropped(whole, tmp_path):
    workdir = shutil.copytree(whole[0] / "1", tmp_path / "run")
    run = tiny_run(3).sit(workdir, resume="change_seeds")
    assert run.done == 60 and np.isfinite(run.books.evaluated["eval/policy_return"]).all()
    for name in ("metrics.csv", "evaluations.csv"):
        same_rows(workdir / name, whole[0] / "3" / name, {0, 1, 2})
    assert tiny_run(3).sit(workdir).state is None
    rows = [len(table(workdir / name)) for name in ("metrics.csv", "evaluations.csv")]
    assert tiny_run(2).sit(workdir, resume="change_seeds").done == 60
    assert rows == [len(table(workdir / name)) for name in ("metrics.csv", "evaluations.csv")]
    assert checkpoint.read(workdir / "checkpoints", 60).sizes[2] == 2


def test_a_chunk_whose_evaluation_was_cut_short_is_written_with_all_seeds(whole, tmp_path):
    workdir = tmp_path / "run"
    run = tiny_run(1).sit(workdir, Interruption(9))
    assert run.books.pending is not None and run.done == 30
    assert tiny_run(3).sit(workdir, resume="change_seeds").done == 60
    same_rows(workdir / "metrics.csv", whole[0] / "3" / "metrics.csv", {0, 1, 2})


def test_what_leads_to_a_point_and_what_remains_are_all_of_a_run():
    program = tiny_run(1).functions.program
    everything = resume_lib.remaining(program, 0, 0)
    assert resume_lib.leading_to(program, 30, 24) == everything
    for iterations, updates in ((10, 0), (10, 4), (13, 7), (15, 9), (22, 16)):
        ahead = resume_lib.leading_to(program, iterations, updates)
        left = resume_lib.remaining(program, iterations, updates)
        assert sum(int(w.groups * w.iterations) for _, w in ahead) == iterations
        assert sum(int(w.groups * w.updates) for _, w in ahead) == updates
        assert sum(int(w.groups * w.iterations) for _, w in (*ahead, *left)) == 30


def test_only_runs_of_the_same_length_are_joined():
    tiny = tiny_run(1)
    state = tiny.functions.program.init(tiny.config)
    ahead = state._replace(iteration=state.iteration + 1)
    with pytest.raises(ValueError, match="different lengths"):
        resume_lib.join(state, ahead)
    both = resume_lib.join(state, state)
    assert both.keys.shape == (2,) and both.timestep.obs.shape[0] == 4
    back = resume_lib.keep_seeds(both, 1)
    jax.tree.map(np.testing.assert_array_equal, leaves(back), leaves(state))
