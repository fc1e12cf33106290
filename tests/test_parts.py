"""Shares of seeds, and workdirs that are arranged for another number of processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pomcp_jax import arrays, checkpoint, controller, parts
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.parts import Part
from pomcp_jax.running import arranging, bookkeeping, tables, workdirs
from pomcp_jax.running.arranging import Piece
from pomcp_jax.running.health import Diverged

SEEDS = 5


@given(first=st.integers(0, 1000), processes=st.integers(1, 40), more=st.integers(0, 200))
def test_shares_are_consecutive_and_differ_by_at_most_one_seed(first, processes, more):
    shares = parts.shares(first, processes + more, processes)
    assert len(shares) == processes
    assert [seed for part in shares for seed in part.seeds] == list(
        range(first, first + processes + more)
    )
    sizes = [part.num_seeds for part in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes)[::-1]


def test_more_processes_than_seeds_are_refused():
    with pytest.raises(ConfigError, match="num_processes = 4: must be <= train.num_seeds = 3"):
        parts.shares(0, 3, 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tables_of_parts_are_those_of_one_run(data):
    """Splitting and joining by seeds, in the order in which one process writes rows."""
    seeds = range(3, 3 + data.draw(st.integers(1, 6)))
    chunks = data.draw(st.lists(st.integers(0, 3), max_size=6))
    decisions, lines = 0, [b"decisions,seed,x\n"]
    for i, more in enumerate(chunks):  # pre-training adds rows without decisions
        decisions += more
        lines += [f"{decisions},{seed},{i}\n".encode() for seed in seeds]

    def split(found, processes):
        shares = parts.shares(seeds.start, len(seeds), processes)
        return [arranging.merged("metrics.csv", found, part)[1] for part in shares]

    found = [lines]
    for _ in range(3):
        processes = data.draw(st.integers(1, len(seeds)))
        found = [each.splitlines(keepends=True) for each in split(found, processes)]
    assert split(found, 1) == [b"".join(lines)]


def test_tables_that_are_none_or_differ_are_refused():
    part = Part(0, 2)
    with pytest.raises(checkpoint.CheckpointError, match="different columns"):
        arranging.merged("metrics.csv", [[b"decisions,seed\n"], [b"seed,decisions\n"]], part)
    with pytest.raises(checkpoint.CheckpointError, match="is no row of a run"):
        arranging.merged("metrics.jsonl", [[b'{"seed": 1}\n']], part)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_books_of_parts_are_those_of_one_run(data):
    values = np.arange(SEEDS, dtype=np.float64)
    left = data.draw(st.sets(st.integers(0, SEEDS - 1)))
    books = bookkeeping.fresh(SEEDS, "abc")._replace(
        returns=values,
        invalid=np.arange(SEEDS),
        evaluated={"eval/return": -values},
        evaluated_at=7,
        left={i: Diverged(i, "term") for i in left},
        pending=bookkeeping.Pending("training", {"loss": values + 9}, 1.0, 10),
    )
    whole = Piece(Part(0, SEEDS), None, None, books)
    pieces = [
        Piece(part, None, None, arranging.take(whole, part))
        for part in parts.shares(0, SEEDS, data.draw(st.integers(1, SEEDS)))
    ]
    joined = arranging.joined([piece.books for piece in pieces])
    assert bookkeeping.to_json(joined) == bookkeeping.to_json(books)
    for part in parts.shares(0, SEEDS, data.draw(st.integers(1, SEEDS))):
        again = arranging.joined(
            [arranging.take(p, part) for p in pieces if arranging._overlap(p.part, part)]
        )
        direct = arranging.take(whole, part)
        assert bookkeeping.to_json(again) == bookkeeping.to_json(direct)


@pytest.fixture(scope="module")
def config():
    return tiny.run(train__num_seeds=SEEDS, train__seed=3)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An ordinary run's folder with two checkpoints, made without training."""
    from pomcp_jax.running import functions

    workdir = tmp_path_factory.mktemp("whole")
    program = functions.build(config).program
    state = program.init(config)
    record = tables.Record(workdir, ["decisions", "seed", "x"], None)
    books = bookkeeping.fresh(SEEDS, "abc")
    for step in (20, 40):
        for seed in range(3, 3 + SEEDS):
            record.row({"decisions": step, "seed": seed, "x": seed / step})
            record.evaluation({"decisions": step, "seed": seed, "eval/return": 1.0 / seed})
        ended = books._replace(
            returns=np.arange(SEEDS) / 3,
            evaluated={"eval/return": np.arange(SEEDS) - float(step)},
            evaluated_at=step,
            tables=(record.written(),),
            seconds=float(step),
        )
        checkpoint.save(
            workdir / "checkpoints",
            step,
            state._replace(iteration=state.iteration + step // 2),
            config,
            program.spec,
            score=-float(step),
            host=bookkeeping.to_json(ended),
        )
    record.close()
    (workdir / "config.json").write_text(workdirs.config_text(config))
    about = {"preset": "po_mpc", "last_checkpoint": 40, "exit_code": 75}
    (workdir / "run.json").write_text(json.dumps(about | {"diverged": {"4": {}}}))
    return workdir


def copied(folder, to):
    return shutil.copytree(folder, to / "run")


def state_of(workdir, step=40):
    return tiny.saved(workdir, step)


def assert_same(workdir, whole):
    """The newest checkpoint and the tables; older checkpoints stay behind."""
    assert state_of(workdir) == state_of(whole)
    for name in tables.TABLES:
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (checkpoint.read(w / "checkpoints", 40) for w in (workdir, whole))
    assert ours.config == theirs.config and ours.sizes == theirs.sizes
    assert ours.host == theirs.host


def test_seeds_survive_any_number_of_processes(config, whole, tmp_path):
    """1 -> 2 -> 3 -> 1 processes: every bit of every array, every byte of every table."""
    workdir = copied(whole, tmp_path)
    for processes in (2, 3):
        (line,) = arranging.arrange(workdir, config, processes)
        assert f"to {processes} processes: arranged at 40 decisions" in line
        names = [part.folder for part in parts.shares(3, SEEDS, processes)]
        assert [part.folder for part in parts.read(workdir).parts] == names
        assert sorted(p.name for p in workdir.iterdir() if p.name[0] == "s") == sorted(names)
        if processes == 3:
            continue
        agents = controller.load(workdir)
        assert agents.num_seeds == agents.config.train.num_seeds == SEEDS
        assert agents.decisions == 40
        wanted = arrays.named(controller.load(whole, 40).state.params)
        for name, leaf in arrays.named(agents.state.params).items():
            np.testing.assert_array_equal(leaf, wanted[name])
        assert arranging.arrange(workdir, config, processes) == []  # nothing is left to do
    first = json.loads((workdir / "seeds-3-4" / "run.json").read_text())
    assert first["preset"] == "po_mpc" and set(first["diverged"]) == {"4"}
    arranging.arrange(workdir, config, 1)
    assert_same(workdir, whole)
    assert parts.read(workdir) is None
    previous = sorted(p.name for p in workdir.glob("previous-*"))
    assert previous == ["previous-1", "previous-2", "previous-3"]
    assert state_of(workdir / "previous-1", 20) == state_of(whole, 20)


def test_a_kill_between_the_moves_is_completed(config, whole, tmp_path, monkeypatch):
    moves, rename = [], Path.rename

    def limited(limit):
        def move(self, target):
            if len(moves) == limit:
                raise KeyboardInterrupt
            moves.append(self.name)
            return rename(self, target)

        moves.clear()
        monkeypatch.setattr(Path, "rename", move)

    limited(None)
    arranging.arrange(copied(whole, tmp_path / "first"), config, 2)
    # Renames of new checkpoints and files come first; from here on old files leave their places.
    begin = moves.index(f"{arranging.STAGED}.partial") + 1
    limited(begin)
    staged = copied(whole, tmp_path / "staged")
    with pytest.raises(KeyboardInterrupt):
        arranging.arrange(staged, config, 2)
    limited(None)
    done = copied(staged, tmp_path / "done")
    arranging._finish_moves(done)
    names = {p.relative_to(done) for p in done.rglob("*")}
    total = len(moves)
    for limit in range(total):
        limited(limit)
        workdir = copied(staged, tmp_path / str(limit))
        with pytest.raises(KeyboardInterrupt):
            arranging._finish_moves(workdir)
        limited(None)
        arranging._finish_moves(workdir)
        assert {p.relative_to(workdir) for p in workdir.rglob("*")} == names, limit
        assert parts.read(workdir).parts == [Part(3, 3), Part(6, 2)]
    assert total >= 8  # one kill before each move of a file or a folder


def test_damage_falls_back_to_an_older_common_checkpoint(config, whole, tmp_path):
    workdir = copied(whole, tmp_path)
    file = next((workdir / "checkpoints" / "40" / "run").rglob("d/*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    (line,) = arranging.arrange(workdir, config, 2)
    assert "arranged at 20 decisions" in line
    rows = (workdir / "seeds-3-5" / "metrics.csv").read_text().splitlines()
    assert rows[0].endswith("seed,x") or "seed" in rows[0]
    assert len(rows) == 1 + 3


def test_parts_without_a_common_checkpoint_are_refused(config, whole, tmp_path):
    workdir = copied(whole, tmp_path)
    arranging.arrange(workdir, config, 2)
    shutil.rmtree(workdir / "seeds-6-7" / "checkpoints" / "40")
    before = sorted(workdir.rglob("*"))
    words = r"no usable checkpoint in common.*resume with 2 processes first"
    for processes in (1, 3):
        with pytest.raises(ConfigError, match=words):
            arranging.arrange(workdir, config, processes)
    assert sorted(workdir.rglob("*")) == before
    with pytest.raises(checkpoint.CheckpointError, match=r"one that all parts have: \[\]"):
        controller.load(workdir)


def test_another_configuration_is_refused(config, whole, tmp_path):
    other = config_lib.replace(config, {"train.capacity": 128})
    more = config_lib.replace(config, {"train.num_seeds": SEEDS + 1})
    workdir = copied(whole, tmp_path)
    for _ in range(2):  # of one process, then of two
        with pytest.raises(ConfigError, match=r"train.capacity = 64, this one has 128"):
            arranging.arrange(workdir, other, 3)
        with pytest.raises(ConfigError, match=r"train.num_seeds = 5, this one has 6"):
            arranging.arrange(workdir, more, 3)
        arranging.arrange(workdir, config, 2)
    with pytest.raises(ConfigError, match="holds a run over several processes"):
        workdirs.check_workdir(workdir, config)


def test_an_earlier_run_is_moved_aside_on_request(config, whole, tmp_path):
    workdir = copied(whole, tmp_path)
    arranging.arrange(workdir, config, 2)
    assert arranging.arrange(workdir, config, 2, "never") == [
        f"the earlier run moved to {workdir}/previous-2/"
    ]
    assert {p.name for p in workdir.iterdir()} == {"previous-1", "previous-2"}
    assert (workdir / "previous-2" / "seeds-3-5" / "checkpoints" / "40").is_dir()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"parts": ["../x"], "config": {}}', '{"parts": [], "config": {}}']
    + ['{"parts": ["seeds-0-1", "seeds-3-4"], "config": {}}', '{"parts": ["seeds-2-1"]}'],
)
def test_a_record_that_is_none_is_refused(text, tmp_path):
    (tmp_path / parts.RECORD).write_text(text)
    with pytest.raises(ConfigError, match=r"parts.json: is unreadable"):
        parts.read(tmp_path)


def test_counters_are_no_seeds():
    assert arranging.rows(np.array(7), 3, slice(0, 1)) == 7
    flat = np.arange(12).reshape(6, 2)  # three seeds with two environments
    np.testing.assert_array_equal(arranging.rows(flat, 3, slice(1, 3)), flat[2:])
