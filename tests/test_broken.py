"""Diverged seeds: the run stops, drops the seed, or resets it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import Interruption, Tiny, assert_same_end, one_commit, table  # noqa: F401

from pomcp_jax import agent, arrays, checkpoint, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.running import health
from pomcp_jax.running.health import Diverged
from pomcp_jax.running.metrics import Fault

SICK = 1
"""The seed that diverges."""
OWN = {"resets", "broken", "refused_updates"}
"""Columns that record what happened to a seed."""


class Struck(Tiny):
    """A tiny run whose parameters become NaN at given iterations, as from a memory fault."""

    def __init__(self, on_broken_seed, strikes=(15,), seeds=(SICK,), **changes):
        changes = {"max_bad_updates": 3, "on_broken_seed": on_broken_seed} | changes
        super().__init__(**{f"train__{name}": value for name, value in changes.items()})
        whole, config = shared().functions, shared().config
        self.chunks = whole.program.chunk

        def chunk(state, _, work):
            if int(state.iteration) in strikes:
                policy = jax.tree.map(
                    lambda x: x.at[jnp.array(seeds)].set(jnp.nan), state.agent.params.policy
                )
                params = state.agent.params._replace(policy=policy)
                state = state._replace(agent=state.agent._replace(params=params))
            return self.chunks(state, config, work)

        # These runs differ in settings of the host only: one program serves all.
        self.functions = whole._replace(
            program=whole.program._replace(init=lambda *_: whole.program.init(config), chunk=chunk),
            evaluate_planner=lambda state, _: whole.evaluate_planner(state, config),
            evaluate_policy=lambda state, _: whole.evaluate_policy(state, config),
            reset_agents=lambda state, _, which: whole.reset_agents(state, config, which),
        )


@functools.cache
def shared():
    return Tiny()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("healthy") / "run"
    return workdir, Struck("stop", strikes=()).sit(workdir)


@pytest.fixture(scope="module", params=["leave", "reset"])
def struck(request, tmp_path_factory):
    """A whole run whose second seed diverged, and its messages."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    tiny_run, interruption, said = Struck(request.param), Interruption(), []
    interruption.progress.say = said.append
    return workdir, tiny_run, tiny_run.sit(workdir, interruption), interruption.events, said


def rows(path, seed, without=frozenset()):
    return [
        {k: v for k, v in row.items() if k not in without}
        for row in table(path)
        if row["seed"] == str(seed)
    ]


def of_seed(state, index):
    data = jax.device_get(arrays.key_data(state))
    lead = data._replace(iteration=(), updates=(), replay=data.replay.rows)
    return jax.tree.map(lambda x: x.reshape(2, -1)[index], lead)


def test_the_other_seed_does_not_change_by_a_bit(struck, healthy):
    workdir, _, run, *_ = struck
    assert run.done == 60 and run.stopped is None
    jax.tree.map(np.testing.assert_array_equal, of_seed(run.state, 0), of_seed(healthy[1].state, 0))
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(workdir / name, 0) == rows(healthy[0] / name, 0)
    assert len(rows(workdir / "metrics.csv", SICK)) == len(rows(healthy[0] / "metrics.csv", SICK))


def test_what_happened_is_said_and_written(struck, healthy):
    workdir, tiny_run, run, _, said = struck
    how = tiny_run.config.train.on_broken_seed
    warned = [text for text in said if text.startswith("warning: seed 1 broke: 5 updates")]
    assert len(warned) == 1 and "others continue" in warned[0]
    mine = rows(workdir / "metrics.csv", SICK)
    column = {"leave": "broken", "reset": "resets"}[how]
    # Seeding, pre-training and the chunk up to 30 are unchanged; the fault is in that up to 40.
    marks = [row[column] for row in mine]
    assert marks == ["0"] * 4 + ["1"] * 3
    assert (
        rows(workdir / "metrics.csv", SICK, OWN)[:4]
        == rows(healthy[0] / "metrics.csv", SICK, OWN)[:4]
    )
    evaluated = [bool(row["eval/return"]) for row in mine if int(row["updates"]) > 9]
    ahead = [row for row in rows(workdir / "evaluations.csv", SICK) if int(row["decisions"]) > 35]
    faults = run.state.agent.faults
    assert int(faults.total[0]) == 0 and int(faults.total[SICK]) >= 3
    if how == "leave":
        assert not any(evaluated) and not ahead
        assert run.lost() == {f"seed {SICK}": Diverged(40, said_term(warned[0]))}
        assert np.isnan(run.books.evaluated["eval/policy_return"][SICK])
        assert all(row["train/return"] == "" for row in mine[4:])
        assert (
            checkpoint.read(workdir / "checkpoints", 60).score
            == run.books.evaluated["eval/return"][0]
        )
    else:
        assert any(evaluated) and ahead and run.lost() == {}
        assert int(faults.consecutive[SICK]) == 0 and int(faults.total[SICK]) == 5
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.state.agent))
        assert tiny_run.chunks._cache_size() == 1


def said_term(line):
    term = line.split("first in: ")[1].split(";")[0]
    assert term in agent.FAULT_TERMS
    return term


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_it_ends_with_the_same_bits(seed, struck, tmp_path):
    whole, tiny_run, _, events, _ = struck
    draw, workdir = np.random.default_rng(seed), tmp_path / "run"
    for i in range(3):
        at = int(draw.integers(1, events // 2))
        tiny_run.sit(workdir, Interruption(at, death=(seed + i) % 2 == 0))
    tiny_run.sit(workdir)
    assert_same_end(workdir, whole)


def test_by_default_the_run_stops_with_the_last_finite_parameters(tmp_path, healthy):
    tiny_run = Struck("stop")
    run = tiny_run.sit(tmp_path / "run")
    assert run.stopped.code == 3 and run.done == 40
    assert "training broke: seed 1, 5 updates in a row were not finite" in str(run.stopped)
    # The same command line with another policy for diverged seeds resumes.
    told = Struck("reset").sit(tmp_path / "run")
    assert told.stopped is None and told.done == 60 and told.books.resets.tolist() == [0, 1]


def test_a_seed_that_keeps_breaking_is_left(tmp_path):
    run = Struck("reset", strikes=(15, 25), max_seed_resets=1).sit(tmp_path / "run")
    assert run.books.resets.tolist() == [0, 1] and run.books.left[SICK].decisions == 60
    assert run.stopped is None


def test_without_any_seed_left_the_run_stops(tmp_path):
    run = Struck("leave", seeds=(0, 1)).sit(tmp_path / "run")
    assert run.stopped.code == 3 and "no seed is left" in str(run.stopped) and run.done == 40


def judge(faults, left=(), resets=(0, 0, 0), **changes):
    changes = {"on_broken": "reset", "most_resets": 2} | changes
    faults = {i: Fault("policy", "why") for i in faults}
    left = {i: Diverged(5, "model") for i in left}
    return health.judge(faults, left, np.array(resets), 9, lambda i: f"seed {i + 7}", **changes)


def test_verdicts():
    assert judge([1], on_broken="stop").stop == "training broke: seed 8, why"
    assert judge([1]).reset == (1,) and judge([1]).left == {}
    # A dropped seed stays dropped, with its own date; a seed reset too often is dropped.
    mixed = judge([0, 1, 2], left=[0], resets=[0, 2, 1])
    assert mixed.left == {0: Diverged(5, "model"), 1: Diverged(9, "policy")}
    assert mixed.reset == (2,) and mixed.stop == "" and len(mixed.lines) == 2
    assert "(2 of 2)" in mixed.lines[1] and "dropped" in mixed.lines[0]
    assert judge([2], left=[0, 1], on_broken="leave").stop == "training broke: no seed is left"
    values = {"a": np.array([1, 2, 3])}
    assert health.without(values, {}) is values
    np.testing.assert_array_equal(health.without(values, mixed.left)["a"], [np.nan, np.nan, 3.0])


@pytest.mark.parametrize("name, value", [("on_broken_seed", "go_on"), ("max_seed_resets", 0)])
def test_bad_values_are_one_line(name, value, healthy):
    config = config_lib.replace(healthy[1].config, {f"train.{name}": value})
    with pytest.raises(ConfigError, match=rf"train\.{name} = {value!r}: must be [^\n]*$"):
        train.build(config, healthy[1].functions.program.env)
