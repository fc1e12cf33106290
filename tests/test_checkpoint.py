"""Checkpoints: restored bit for bit; rejected if damaged or malicious."""

import gc
import hashlib
import importlib.metadata
import json
import os
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import pomcp_jax
from experiments.benchmarks.checkpoint_damage import mutate
from pomcp_jax import acting, agent, arrays, checkpoint, digests, envs, replay, train
from pomcp_jax.checkpoint import CheckpointError, DamagedError, MismatchError

CONFIG = tiny.run(agent_changes={"optimizer__learning_rate": 0.00123})


@pytest.fixture(scope="module")
def trained():
    """Two seeds of a fresh agent."""
    spec = acting.build(CONFIG.agent, 3, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    return spec, jax.jit(jax.vmap(lambda k: agent.init(k, CONFIG.agent, spec)))(keys)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    spec, state = trained
    checkpoint.save(folder, 120, state, CONFIG, spec)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run's state after some rows, the ring not full, and its checkpoint."""
    config = tiny.run(train__num_seeds=2)
    env = envs.make(config.env.task, config.env.action_repeat)
    spec = acting.build(config.agent, env.observation_size, env.action_size)
    shapes = jax.eval_shape(lambda: train.init(config, env, spec))
    state = jax.jit(lambda: train.init(config, env, spec))()
    rows = jax.tree.map(lambda x: x.at[:, :7].set(jnp.ones((), x.dtype)), state.replay.rows)
    ring = replay.Replay(rows, jnp.asarray(7, jnp.int32))
    state = state._replace(replay=ring)
    folder = tmp_path_factory.mktemp("whole")
    checkpoint.save(folder, 40, state, config, spec, host={"text": "a", "list": [1, None]})
    return folder, state, shapes


def assert_same(a, b):
    a, b = arrays.key_data(a), arrays.key_data(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), a, b)


def test_an_agent_comes_back_bit_for_bit(trained, saved):
    spec, state = trained
    back = checkpoint.restore(saved)
    assert back.decisions == 120 and back.config == CONFIG
    assert (back.spec.obs_size, back.spec.action_size, back.num_seeds) == (3, 2, 2)
    assert_same(back.state, state)


def test_a_whole_run_comes_back_bit_for_bit(whole):
    folder, state, shapes = whole
    found = checkpoint.read(folder, 40)
    assert found.host == {"text": "a", "list": [1, None]}
    assert found.versions["jax"] == jax.__version__ and "mujoco" in found.versions
    back = checkpoint.restore_run(folder, found, shapes)
    assert_same(back, state)
    assert not any(x.weak_type for x in jax.tree.leaves(arrays.key_data(back)))


def test_a_checkout_that_is_not_installed_saves_too(trained, tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    checkpoint.versions.cache_clear()
    try:
        spec, state = trained
        checkpoint.save(tmp_path, 120, state, CONFIG, spec)
        found = checkpoint.read(tmp_path, 120).versions
        assert found["jax"] == "unknown" and found["pomcp_jax"] == pomcp_jax.__version__
    finally:
        checkpoint.versions.cache_clear()


def test_only_rows_in_use_are_written(whole):
    stored = arrays.stored(whole[0] / "40" / "run")
    rows = {name: x.shape for name, x in stored.items() if name.startswith(".replay.rows")}
    assert len(rows) >= 8 and {shape[:3] for shape in rows.values()} == {(2, 7, 2)}


def test_a_snapshot_does_not_change_with_the_state(whole):
    """On a CPU the host sees the device's own memory, which the next chunk overwrites."""
    _, state, _ = whole
    shot = checkpoint.snapshot(state)
    name = ".iteration"
    double = jax.jit(lambda x: x + 5, donate_argnums=0)
    before = shot.run[name].copy()
    double(jnp.copy(state.iteration))
    np.testing.assert_array_equal(shot.run[name], before)
    memory = np.asarray(state.stats.decisions)
    assert not np.shares_memory(shot.run[".stats.decisions"], memory)


def test_the_agent_needs_no_run(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    shutil.rmtree(folder / "40" / "run")
    assert_same(checkpoint.restore(folder).state, whole[1].agent)


def test_the_newest_and_the_best_are_kept(trained, tmp_path):
    spec, state = trained
    for decisions, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None), (5, float("nan"))):
        checkpoint.save(tmp_path, decisions, state, CONFIG, spec, keep=2, score=score)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]


def test_what_cannot_be_read_is_not_deleted_and_does_not_count(trained, tmp_path):
    spec, state = trained
    for decisions in (1, 2):
        checkpoint.save(tmp_path, decisions, state, CONFIG, spec)
    (tmp_path / "2" / digests.NAME).write_text("{")
    checkpoint.save(tmp_path, 3, state, CONFIG, spec, keep=2)
    assert checkpoint.steps(tmp_path) == [1, 2, 3]


def test_numbers_of_numpy_are_saved_as_plain_ones(trained, tmp_path):
    spec, state = trained
    host = {"a": np.float32(0.5), "b": np.arange(2), "c": [np.int64(3)], "d": jnp.ones(())}
    checkpoint.save(tmp_path, 1, state, CONFIG, spec, host=host)
    assert checkpoint.read(tmp_path, 1).host == {"a": 0.5, "b": [0, 1], "c": [3], "d": 1.0}
    with pytest.raises(CheckpointError, match="2: not saved .*set is not JSON"):
        checkpoint.save(tmp_path, 2, state, CONFIG, spec, host={"x": {1}})
    assert checkpoint.steps(tmp_path) == [1]


def test_none_readable_just_now_deletes_nothing(trained, tmp_path, monkeypatch):
    """Too many open files while old checkpoints are pruned."""
    spec, state = trained
    checkpoint.save(tmp_path, 1, state, CONFIG, spec)

    def short(place):
        raise checkpoint.ShortageError(f"{place}: unreadable (Too many open files)")

    monkeypatch.setattr(digests, "read", short)
    checkpoint.save(tmp_path, 2, state, CONFIG, spec, keep=1)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_old_checkpoints_that_cannot_be_deleted_are_a_warning(trained, tmp_path, monkeypatch):
    """The save itself is complete."""
    spec, state = trained
    checkpoint.save(tmp_path, 1, state, CONFIG, spec)

    def fails(folder):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "steps", fails)
        with pytest.warns(UserWarning, match=r"checkpoints were not deleted \(Input/output error"):
            assert checkpoint.save(tmp_path, 2, state, CONFIG, spec, keep=1) == tmp_path / "2"
    assert checkpoint.steps(tmp_path) == [1, 2] and checkpoint.restore(tmp_path).decisions == 2


def test_saving_again_replaces(trained, tmp_path):
    spec, state = trained
    checkpoint.save(tmp_path, 1, state, CONFIG, spec)
    doubled = jax.tree.map(lambda x: x + x, state)
    checkpoint.save(tmp_path, 1, doubled, CONFIG, spec)
    assert_same(checkpoint.restore(tmp_path).state, doubled)


def test_an_agent_whose_optimisers_are_of_another_version_can_act(trained, tmp_path):
    spec, state = trained
    older = state._replace(opt=state.opt._replace(policy=jnp.zeros((2, 5))))
    checkpoint.save(tmp_path, 1, older, CONFIG, spec)
    back = checkpoint.restore(tmp_path).state
    assert back.opt is None
    assert_same(back.params, state.params)
    assert_same(back.target_value, state.target_value)
    other = older.params._replace(policy={"kernel": jnp.zeros((2, 5))})
    checkpoint.save(tmp_path, 1, older._replace(params=other), CONFIG, spec)
    assert "params.policy['kernel'] is unknown" in refused(tmp_path, kind=MismatchError)


def test_a_killed_replacement_is_undone(copy):
    """Killed between the two renames: the old checkpoint is restored, partial ones are removed."""
    (copy / "120").rename(copy / ".120.replaced")
    shutil.copytree(copy / ".120.replaced", copy / ".120.partial")
    shutil.copytree(copy / ".120.replaced", copy / ".60.deleted")
    assert checkpoint.steps(copy) == []
    checkpoint.recover(copy)
    assert [p.name for p in copy.iterdir()] == ["120"]
    checkpoint.restore(copy)


def test_set_aside_deletes_nothing(copy):
    first = checkpoint.set_aside(copy, 120)
    shutil.copytree(first, copy / "120")
    second = checkpoint.set_aside(copy, 120)
    assert checkpoint.steps(copy) == [] and first != second and first.exists()


def test_the_newest_whole_one_is_used(copy):
    shutil.copytree(copy / "120", copy / "200")
    path = copy / "200" / digests.NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="/200/manifest.json: does not match its digest"):
        assert checkpoint.restore(copy).decisions == 120


def refused(folder, *args, kind=CheckpointError):
    with pytest.raises(kind) as error:
        checkpoint.restore(folder, *args)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text
    return text


def test_nothing_there(tmp_path):
    assert "holds no checkpoint" in refused(tmp_path / "none")


def test_other_number(copy):
    assert "[120]" in refused(copy, 7)


def test_a_copy_under_another_name(copy):
    (copy / "120").rename(copy / "130")
    assert "holds checkpoint 120" in refused(copy)


def rewrite(place, change):
    """Change a manifest and correct its digest, as an attacker would."""
    path = place / digests.NAME
    record = json.loads(path.read_bytes())
    change(record["manifest"])
    body = json.dumps({"manifest": record["manifest"]})[1:].encode()
    head = f'{{"sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode()
    path.write_bytes(head + body)


def test_another_format_says_what_to_do(copy):
    rewrite(copy / "120", lambda m: m.update(format=7, versions={"pomcp_jax": "9.1"}))
    text = refused(copy)
    assert "format 7" in text and "9.1" in text


def test_the_format_before_is_read(trained, copy):
    """It had shapes, types and digests of the arrays as well."""
    leaf = {".x": {"shape": [], "dtype": "int32", "sha256": "0" * 64}}
    rewrite(copy / "120", lambda m: m.update(format=2, leaves={"agent": leaf}))
    assert_same(checkpoint.restore(copy).state, trained[1])


def all_files(place):
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())


@pytest.mark.parametrize("how", ["truncated", "emptied", "deleted"])
def test_every_damaged_file_is_noticed(whole, tmp_path, how):
    folder, _, shapes = whole
    for name in all_files(folder / "40"):
        place = shutil.copytree(folder, tmp_path / "copy")
        path = place / "40" / name
        if how == "deleted":
            path.unlink()
        elif how == "emptied":
            path.write_bytes(b"")
        else:
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DamagedError, match="40/"):
            checkpoint.restore_run(place, checkpoint.read(place, 40), shapes)
        shutil.rmtree(place)


def test_every_flipped_bit_is_noticed(whole, tmp_path):
    """Random bits of all files, including the manifest."""
    folder, _, shapes = whole
    place = shutil.copytree(folder, tmp_path / "copy")
    names = all_files(place / "40")
    draw = random.Random(0)
    for i in range(60):
        path = place / "40" / (names[i % len(names)])
        good = path.read_bytes()
        bad, where = bytearray(good), draw.randrange(8 * len(good))
        bad[where // 8] ^= 1 << where % 8
        path.write_bytes(bad)
        with pytest.raises(DamagedError):
            checkpoint.restore_run(place, checkpoint.read(place, 40), shapes)
        path.write_bytes(good)
    checkpoint.restore_run(place, checkpoint.read(place, 40), shapes)


def test_files_that_change_places_are_noticed(copy):
    """Files of equal size: each is intact, but under the wrong name."""
    (copy / "120").rename(copy / "80")
    rewrite(copy / "80", lambda m: m.update(decisions=80))
    checkpoint.restore(copy)
    files = checkpoint.read(copy, 80).files
    first, second = sorted(files, key=lambda name: files[name]["size"])[-2:]
    paths = [copy / "80" / name for name in (first, second)]
    contents = [path.read_bytes() for path in paths]
    for path, data in zip(paths, contents[::-1], strict=True):
        path.write_bytes(data)
    assert "does not match its digest" in refused(copy, kind=DamagedError)


def test_extra_files_are_noticed(copy):
    (copy / "120" / "agent" / "d" / "more").touch()
    assert "agent/d/more: is an extra file" in refused(copy, kind=DamagedError)


def test_differing_leaves_are_named(whole):
    folder, _, shapes = whole
    stats = shapes.stats
    other = stats._replace(episodes=jax.ShapeDtypeStruct((3,), jnp.int32), invalid=None)
    with pytest.raises(MismatchError) as error:
        checkpoint.restore_run(folder, checkpoint.read(folder, 40), shapes._replace(stats=other))
    assert error.value.leaves == (".stats.episodes", ".stats.invalid")
    text = str(error.value)
    assert ".stats.episodes is int32[2], must be int32[3]; .stats.invalid is unknown" in text


HOSTILE = {
    "traversal": lambda m: m["files"].update({"agent/../../x": {"size": 1, "sha256": "0" * 64}}),
    "absolute": lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": "0" * 64}}),
    "elsewhere": lambda m: m["files"].update({"other/x": {"size": 1, "sha256": "0" * 64}}),
    "two lines": lambda m: m["files"].update({"agent/a\nb": {}}),
    "no file": lambda m: m["files"].update({"agent/x": None}),
    "no files": lambda m: m["files"].clear(),
    "huge": lambda m: m.update(sizes=[2**63, 2, 2]),
    "negative": lambda m: m.update(sizes=[-1, 2, 2]),
    "layers": lambda m: m["config"]["agent"]["world_model"].update(encoder_layers=10**12),
    "width": lambda m: m["config"]["agent"]["world_model"].update(mlp_width=2**40),
    "infinite": lambda m: m["config"]["agent"]["optimizer"].update(discount=float("inf")),
    "seeds": lambda m: m.update(sizes=[3, 2, 2**47]),
    "sizes": lambda m: m.update(sizes=[5, 2, 2]),
    "empty": lambda m: m.clear(),
    "list": lambda m: m.update(config=[]),
    "score": lambda m: m.update(score="best"),
    "unknown field": lambda m: m["config"]["agent"].update(mpppi={}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests_are_refused_with_a_line(copy, case):
    before = all_files(copy.parent)
    rewrite(copy / "120", HOSTILE[case])
    refused(copy)
    assert all_files(copy.parent) == before


def test_links_out_of_the_checkpoint_are_refused(copy, tmp_path):
    name = next(n for n in checkpoint.read(copy, 120).files if n.startswith("agent/"))
    outside = shutil.copy(copy / "120" / name, tmp_path / "outside")
    (copy / "120" / name).unlink()
    (copy / "120" / name).symlink_to(outside)
    assert f"{name}: unreadable (missing, or a link" in refused(copy, kind=DamagedError)


def test_deep_nesting_is_refused(copy):
    body = b'"manifest": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    head = b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n'
    (copy / "120" / digests.NAME).write_bytes(head + body)
    assert "not a manifest" in refused(copy)


def test_mutated_manifests_load_unchanged_or_are_refused(trained, copy, tmp_path):
    draw = random.Random(1)
    original = (copy / "120" / digests.NAME).read_bytes()
    before = all_files(tmp_path)
    for _ in range(60):
        (copy / "120" / digests.NAME).write_bytes(original)
        rewrite(copy / "120", lambda m: mutate(draw, m))
        try:
            back = checkpoint.restore(copy)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:  # a number of the configuration, say: the arrays are still those that were saved
            assert_same(back.state, trained[1])
    assert all_files(tmp_path) == before


# orbax writes in its own threads and event loops; errors there must reach the caller.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_leaves_the_earlier_step(trained, copy):
    """A limit on file sizes interrupts the writing, as a full disk would."""
    spec, state = trained
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError) as error:
            checkpoint.save(copy, 200, state, CONFIG, spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        gc.collect()  # errors of orbax's threads are reported here, not in the next test
    text = str(error.value)
    assert "/200: not saved (File too large)" in text and "\n" not in text
    assert checkpoint.steps(copy) == [120]
    checkpoint.recover(copy)  # orbax's threads may still write after the error
    assert os.listdir(copy) == ["120"]
    assert_same(checkpoint.restore(copy).state, state)


def test_too_little_space_is_known_before(trained, copy, monkeypatch):
    spec, state = trained
    free = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CheckpointError, match="needs 0.* MB, 0.0 MB are free"):
        checkpoint.save(copy, 200, state, CONFIG, spec)
    assert os.listdir(copy) == ["120"]
