"""No run is ever lost: damaged, missing, edited and unreadable files."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_checkpoint
import tiny
from test_resume import Interruption, Tiny, assert_same_end, table

from experiments import plot
from experiments import run as run_module
from experiments import start as start_module
from pomcp_jax import checkpoint, digests
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import run_figures
from pomcp_jax.running import process, starting, tables, trainer, workdirs
from pomcp_jax.running import run as run_lib
from pomcp_jax.running.background import Stop
from pomcp_jax.running.bookkeeping import array, from_json, listed, to_json


@pytest.fixture(scope="module", autouse=True)
def one_commit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "commit", lambda: "0123456789ab")
        yield


@pytest.fixture(scope="module")
def tiny_run():
    return Tiny()


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    tiny_run.sit(workdir)
    return workdir


@pytest.fixture(scope="module")
def halfway(tiny_run, tmp_path_factory):
    """Stopped at 40 of 60 decisions."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    assert tiny_run.sit(workdir, Interruption(12)).done == 40
    return workdir


@pytest.fixture
def copy(halfway, tmp_path):
    return shutil.copytree(halfway, tmp_path / "run")


def contents(folder):
    return {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def begin(tiny_run, workdir, **changes):
    return starting.begin(tiny_run.options(workdir, **changes), tiny_run.functions.program)


def refused(tiny_run, workdir, words, kind=ConfigError, **changes):
    """``begin`` fails twice with a one-line error and changes nothing."""
    before = contents(workdir)
    for _ in range(2):
        with pytest.raises(kind, match=words) as error:
            begin(tiny_run, workdir, **changes)
        assert "\n" not in str(error.value)
    assert contents(workdir) == before


def spoil(manifest):
    manifest.write_text("{")


def empty(manifest):
    manifest.write_bytes(b"")


def vanish(manifest):
    manifest.unlink()


def lose_arrays(manifest):
    shutil.rmtree(manifest.parent / "agent")


def loop_of_links(manifest):
    for file in (manifest.parent / "run").rglob("d/*"):
        file.unlink()
        file.symlink_to(file.name)


@pytest.mark.parametrize("how", [spoil, empty, vanish, lose_arrays, loop_of_links])
def test_all_checkpoints_damaged_is_refused_again_and_again(how, tiny_run, copy):
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        how(manifest)
    refused(tiny_run, copy, "no checkpoint of this run is intact; --resume=never")


@pytest.mark.parametrize("name", ["{}.damaged", "{}.damaged2", ".{}.deleted", "{} (copy)"])
def test_folders_that_were_checkpoints_count(name, tiny_run, copy):
    for path in (copy / "checkpoints").iterdir():
        path.rename(path.with_name(name.format(path.name)))
    if "(" in name:  # an unknown name: run.json or the tables show that there is a run
        (copy / "run.json").write_text('{"last_checkpoint": 40}')
        refused(tiny_run, copy, "is empty, but this run had saved at 40 decisions")
    else:
        refused(tiny_run, copy, "no checkpoint of this run is intact")


def test_checkpoints_that_were_deleted_are_missed(tiny_run, copy):
    shutil.rmtree(copy / "checkpoints")
    for text, words in (
        ('{"last_checkpoint": 40}', "had saved at 40 decisions"),
        ('{"saves": 3}', "had saved by its run.json"),
        ("{", "run.json"),
        ("[]", "is no record of a run"),
        ('{"last_checkpoint": "x"}', "last_checkpoint must be"),
    ):
        (copy / "run.json").write_text(text)
        refused(tiny_run, copy, words)


def test_a_run_that_never_saved_starts_again_and_keeps_its_rows(tiny_run, whole, copy):
    shutil.rmtree(copy / "checkpoints")
    (copy / "run.json").write_text('{"last_checkpoint": null, "saves": 4}')
    rows = (copy / "metrics.csv").read_bytes()
    run = tiny_run.sit(copy)
    assert any("saved no checkpoint; its tables moved to" in note for note in run.notes)
    assert (copy / "previous-1" / "metrics.csv").read_bytes() == rows
    assert_same_end(copy, whole)


def test_never_moves_everything_aside(tiny_run, whole, copy):
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        spoil(manifest)
    before = contents(copy)
    tiny_run.sit(copy, resume="never")
    after = contents(copy / "previous-1")
    assert {p.relative_to(copy): x for p, x in before.items()} == {
        p.relative_to(copy / "previous-1"): x for p, x in after.items()
    }
    assert_same_end(copy, whole)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("file", ["manifest.json", "d"])
def test_a_shortage_is_not_damage(number, file, tiny_run, copy, monkeypatch):
    opened = Path.open

    def short(self, *args, **kwargs):
        if "checkpoints" in self.parts and (self.name == file or self.parent.name == file):
            raise OSError(number, os.strerror(number))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(Stop, match=os.strerror(number)) as error:
        begin(tiny_run, copy)
    assert error.value.code == 4 and "\n" not in str(error.value)
    assert not list(copy.rglob("*.damaged*"))
    monkeypatch.undo()
    assert begin(tiny_run, copy).decisions == 40


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: [OS error 24: EMFILE Too many open files]"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_shortage_inside_orbax_is_not_damage(error, tiny_run, copy, monkeypatch):
    import orbax.checkpoint as ocp

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "restore", fails)
    refused(tiny_run, copy, "nothing was changed", kind=Stop)


OTHER = {"train.seed": 5, "agent.optimizer.discount": 0.5, "agent.policy.kl_coef": 7.0}


@pytest.mark.parametrize("how", ["missing", "edited"])
def test_the_configuration_inside_the_checkpoint_counts(how, tiny_run, copy):
    other = tiny.config_lib.replace(tiny_run.config, OTHER)
    if how == "missing":
        (copy / "config.json").unlink()
    else:
        (copy / "config.json").write_text(workdirs.config_text(other))
    workdirs.check_workdir(copy, other)
    words = "was made with agent.optimizer.discount = 0.99, this one has 0.5; agent.policy.kl_coef"
    refused(tiny_run, copy, words + ".* train.seed = 0, this one has 5", config=other)


def test_what_may_change_may_still_change(tiny_run, copy):
    (copy / "config.json").unlink()
    other = {"train.checkpoint_keep": 9, "train.eval_decisions": 30, "train.chunk_decisions": 20}
    found = begin(tiny_run, copy, config=tiny.config_lib.replace(tiny_run.config, other))
    assert found.decisions == 40


WRONG_HOSTS = {
    "finished": 1, "updates": "3", "seconds": None, "last_evaluation": 1.5, "evaluated": [],
    "returns": [0.0], "invalid": [0.5, 0.5], "pending": [1, 2], "tables": {}, "commit": 3,
    "left": [[7, 1, "x"]], "resets": [1, 2, 3], "evaluated_at": [], "unknown": 1,
}  # fmt: skip
WRONG_WRITTEN = {0: [1], 1: "x", 2: {"metrics.csv": 1}, 3: None, 4: [0]}
WRONG_PENDING = {0: "resting", 1: {"x": [1]}, 2: "s", 3: None, 4: 0}


@pytest.mark.parametrize("field", WRONG_HOSTS)
def test_a_host_of_another_type_is_one_line(field, tiny_run, copy):
    newest = copy / "checkpoints" / "40"
    change = {field: WRONG_HOSTS[field]}
    test_checkpoint.rewrite(newest, lambda manifest: manifest["host"].update(change))
    refused(tiny_run, copy, "was not made by this command line .*--resume=never")


def test_every_part_of_a_host_is_checked(copy):
    host = checkpoint.read(copy / "checkpoints", 40).host
    good = host | {"pending": ["training", {"x": [1, None]}, 0.5, 10, ""]}
    assert from_json(good, 2).pending.values["x"][0] == 1.0
    (written,) = good["tables"]
    for place, parts, wrongs, put in (
        ("tables", written, WRONG_WRITTEN, lambda parts: [parts]),
        ("pending", good["pending"], WRONG_PENDING, list),
    ):
        for index, value in wrongs.items():
            bad = list(parts)
            bad[index] = value
            with pytest.raises((ValueError, TypeError, KeyError)):
                from_json(good | {place: put(bad)}, 2)
        with pytest.raises((ValueError, TypeError, KeyError)):
            from_json(good | {place: put(parts[:2])}, 2)
    for name in host:
        if name not in ("left", "resets", "grid"):
            with pytest.raises((ValueError, TypeError, KeyError)):
                from_json({k: v for k, v in good.items() if k != name}, 2)


def test_books_of_runs_before_sweeps_had_checkpoints_are_read(copy):
    host = checkpoint.read(copy / "checkpoints", 40).host
    old = {name: value for name, value in host.items() if name not in ("tables", "grid")}
    books = from_json(old | {"written": host["tables"][0]}, 2)
    assert to_json(books) == to_json(from_json(host, 2))


def test_infinite_numbers_can_be_saved_and_come_back():
    values = np.array([1.5, np.nan, np.inf, -np.inf])
    text = json.dumps(listed(values), allow_nan=False)
    np.testing.assert_array_equal(array(json.loads(text)), values)
    assert array(json.loads(json.dumps(listed(np.array([1, 2]))))).dtype == np.int64


def test_infinite_returns_do_not_stop_saving(tiny_run, tmp_path, monkeypatch):
    told = []
    stop = Interruption(10)
    monkeypatch.setattr(stop.progress, "say", told.append)
    values = run_lib.metrics.chunk_values

    def infinite(*args):
        return values(*args) | {"train/return": np.array([np.inf, -np.inf])}

    monkeypatch.setattr(run_lib.metrics, "chunk_values", infinite)
    tiny_run.sit(tmp_path / "run", stop)
    assert not [text for text in told if "not saved" in text]
    assert begin(tiny_run, tmp_path / "run").books.returns.tolist() == [np.inf, -np.inf]


def test_an_evaluation_whose_row_was_not_written_is_made_again(
    tiny_run, whole, tmp_path, monkeypatch
):
    row = tables.Record.row

    def full(self, values):
        if values.get("eval/return") is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        row(self, values)

    workdir = tmp_path / "run"
    monkeypatch.setattr(tables.Record, "row", full)
    assert tiny_run.sit(workdir).stopped.code == 4
    monkeypatch.undo()
    monkeypatch.setattr(process, "commit", lambda: "0123456789ab")
    tiny_run.sit(workdir)
    assert_same_end(workdir, whole)


def cut_short(data):
    return data[: len(data) // 2]


def longer(data):
    return data.replace(b"\n", b"\n\n", 1)


def middle(data):
    return data[:-9] + b"7" + data[-8:]


def other_ends(data):
    return data.replace(b"\r\n", b"\n")


def binary(data):
    return bytes(range(256)) * 9


@pytest.mark.parametrize("how", [cut_short, longer, middle, other_ends, binary])
@pytest.mark.parametrize("name", tables.TABLES)
def test_edited_tables_are_noticed_and_nothing_is_lost(name, how, tiny_run, whole, copy):
    path = copy / name
    before, edited = path.read_bytes(), how(path.read_bytes())
    if edited == before:
        pytest.skip("nothing to change")
    path.write_bytes(edited)
    start = begin(tiny_run, copy)
    warned = [note for note in start.notes if note.startswith("warning")]
    assert len(warned) == 1 and name in warned[0] and f"{name}.edited-1" in warned[0]
    assert path.read_bytes() == edited
    held = tables.Record(copy, start.books.tables[0].columns, written=start.books.tables[0])
    decisions = {"decisions": 99, "seed": 0}
    held.evaluation(decisions) if "evaluations" in name else held.row(decisions)
    held.close()
    assert (copy / f"{name}.edited-1").read_bytes() == edited
    if name.endswith("csv"):
        rows = table(path)
        assert rows[-1]["decisions"] == "99" and None not in rows[-1]
    else:
        assert json.loads(path.read_text("latin-1").splitlines()[-1])["decisions"] == 99


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_table_that_vanishes_in_mid_run(how, tmp_path):
    said = []
    held = tables.Record(tmp_path, ["decisions", "seed", "loss"], say=said.append)
    held.row({"decisions": 1, "seed": 0})
    held.evaluation({"decisions": 1, "seed": 0})
    for name in tables.TABLES:
        path = tmp_path / name
        if how == "replaced":
            other = tmp_path / "other"
            other.write_bytes(path.read_bytes().rstrip())
            other.replace(path)
        else:
            path.unlink()
    held.row({"decisions": 2, "seed": 0})
    held.evaluation({"decisions": 2, "seed": 0})
    assert len(said) == 3 and all("was removed or replaced" in text for text in said)
    expected = ["1", "2"] if how == "replaced" else ["2"]
    for name in ("metrics.csv", "evaluations.csv"):
        assert [row["decisions"] for row in table(tmp_path / name)] == expected
    assert tables.changed(tmp_path, held.written()) == []
    held.close()


@pytest.fixture
def resumed(tiny_run, copy):
    """A run that has started and does nothing."""
    start = begin(tiny_run, copy)
    run = run_lib.Run(tiny_run.options(copy), tiny_run.functions, start, Interruption())
    yield run
    run.close()


BAD_TABLES = {
    "ragged": b"a,b\n1\n2,3,4,5\n", "binary": bytes(range(256)), "empty": b"",
    "columns": b"x\n1\n", "words": b"seed,decisions,train/return\na,b,c\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_no_table_ends_a_training_while_drawing(kind, resumed, copy, monkeypatch):
    run = resumed
    said = []
    monkeypatch.setattr(run.progress, "say", said.append)
    (copy / "metrics.csv").write_bytes(BAD_TABLES[kind])
    run.draw()
    run.draw()
    assert len(said) <= 1 and all(text.startswith("warning: no picture: ") for text in said)
    code = plot.main([str(copy), f"--out={copy / 'x.png'}"])
    assert code in (0, 2)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("fonts"), OSError(28, "full")])
def test_no_exception_while_drawing_ends_a_training(error, resumed, monkeypatch):
    run = resumed

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(run_figures, "draw", fails)
    said = []
    monkeypatch.setattr(run.progress, "say", said.append)
    run.draw()
    run.draw()
    assert len(said) == 1 and type(error).__name__ in said[0]


def finish(tiny_run, workdir, start=None, interruption=None):
    """As ``experiments.run`` does, in this process."""
    workdirs.check_workdir(workdir, tiny_run.config)
    workdir.mkdir(exist_ok=True)
    start = start or begin(tiny_run, workdir)
    signals = interruption or Interruption()
    run = run_lib.Run(tiny_run.options(workdir), tiny_run.functions, start, signals)
    outcome = trainer.finish(run, "run")
    code = start_module.end(
        outcome,
        lambda end: run_module.report(end, tiny_run.config),
        lambda code, text: code,
    )
    return code, json.loads((workdir / "run.json").read_text())


@pytest.mark.parametrize("where", ["write", "evaluate", "judge"])
def test_an_unexpected_exception_saves_and_is_one_line(
    where, tiny_run, whole, copy, monkeypatch, capsys
):
    """``judge`` is called after the state was donated; the others still have it."""

    def fails(*args, **kwargs):
        raise TypeError("a mistake\nof two lines")

    monkeypatch.setattr(run_lib.Run, where, fails)
    code, about = finish(tiny_run, copy)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert code == about["exit_code"] == 1 and len(lines) == 1 and "Traceback" not in captured.err
    assert about["status"] == "failed: TypeError: a mistake of two lines"
    assert f"(traceback: {copy}/crash.txt)" in lines[0]
    assert ("the current chunk is lost" in lines[0]) == (where == "judge")
    assert "Traceback" in (copy / "crash.txt").read_text()
    newest = checkpoint.steps(copy / "checkpoints")[-1]
    assert newest == about["last_checkpoint"] and f"saved at {newest} decisions" in lines[0]
    monkeypatch.undo()
    monkeypatch.setattr(process, "commit", lambda: "0123456789ab")
    code, about = finish(tiny_run, copy)
    assert code == 0 and about["status"] == "done"
    assert_same_end(copy, whole)


def test_run_json_says_that_a_run_is_under_way(tiny_run, copy, monkeypatch):
    (copy / "run.json").write_text('{"status": "done", "exit_code": 0}')
    seen = []
    monkeypatch.setattr(
        run_lib.Run, "go", lambda run: seen.append(json.loads((copy / "run.json").read_text()))
    )
    code, about = finish(tiny_run, copy)
    assert seen[0]["status"] == "running" and seen[0]["exit_code"] is None
    assert seen[0]["pid"] == os.getpid() and seen[0]["last_checkpoint"] == 40
    assert code == 0 and about["status"] == "done"


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError()])
def test_a_copy_that_cannot_be_made_is_a_failed_save(error, tiny_run, whole, tmp_path, monkeypatch):
    snapshot, tried = checkpoint.snapshot, []

    def fails(state, *seeds):
        tried.append(1)
        if len(tried) < 2:
            raise error
        return snapshot(state, *seeds)

    stop, said = Interruption(), []
    monkeypatch.setattr(stop.progress, "say", said.append)
    monkeypatch.setattr(checkpoint, "snapshot", fails)
    tiny_run.sit(tmp_path / "run", stop)
    assert len([x for x in said if "not saved" in x and x.endswith("training continues")]) == 1
    assert_same_end(tmp_path / "run", whole)


def test_links_that_form_a_loop_are_damage(copy):
    folder = copy / "checkpoints"
    manifest = checkpoint.read(folder, 40)
    name = next(iter(manifest.files))
    (folder / "40" / name).unlink()
    (folder / "40" / name).symlink_to(folder / "40" / name)
    with pytest.raises(checkpoint.DamagedError, match="unreadable"):
        digests.verify(folder / "40", manifest.files, ("agent", "run"))


LONG = "x" * 300


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (LONG, "longer than 255"),
        ("/".join(["x" * 200] * 25), "too long"),
        ("a\0b", "zero byte"),
        ("\udcff", "is not UTF-8"),
        ("a\nb", "line breaks"),
        ("a\x1b[2Jb", "control characters"),
        ("a\u2028b", "line breaks"),
        ("file", "is a file"),
        ("file/below", "is no folder"),
        ("link", "is no folder"),
        ("link/below", "is no folder"),
    ],
)
def test_workdirs_that_cannot_be(name, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(ConfigError, match=words) as error:
        workdirs.check_workdir(tmp_path / name, tiny.run())
    text = str(error.value)
    assert "\n" not in text and text.startswith("--workdir = ") and len(text) < 1000
    assert text.isascii()


def test_a_workdir_below_what_cannot_be_read(tmp_path, monkeypatch):
    def forbidden(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(ConfigError, match="Permission denied"):
        workdirs.check_workdir(tmp_path / "x", tiny.run())


@pytest.mark.parametrize("name", workdirs.FILES)
def test_folders_instead_of_files_and_the_reverse(name, tmp_path):
    path = tmp_path / name
    path.touch() if name in workdirs.FOLDERS else path.mkdir()
    if name == "learning_curve.png":
        return workdirs.check_workdir(tmp_path, tiny.run())
    with pytest.raises(ConfigError, match=f"its {name} is no (file|folder)"):
        workdirs.check_workdir(tmp_path, tiny.run())
    workdirs.check_workdir(tmp_path, tiny.run(), resume="never")


@pytest.mark.parametrize("data", [b"\xff\x00", b"[" * 100_000, b" " * (5 << 20), b"[]", b"3", b""])
def test_configurations_that_cannot_be_read(data, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ConfigError, match="config.json is unreadable") as error:
        workdirs.check_workdir(tmp_path, tiny.run())
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is no file"):
        workdirs.check_workdir(tmp_path, tiny.run())
