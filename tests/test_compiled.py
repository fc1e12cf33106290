"""Compiled functions receive the fields that they read; no other field compiles them again."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from test_train import base, program

from pomcp_jax import compiled, diagnostics, train
from pomcp_jax import config as config_lib
from pomcp_jax.compiled import Compiled, reduced
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import functions as functions_lib
from pomcp_jax.running.background import Ahead


@jax.tree_util.register_static
class Spy:
    """A group of settings that records which of them are read."""

    def __init__(self, name, group, seen):
        self.__dict__ |= {"_name": name, "_group": group, "_seen": seen}

    def __getattr__(self, field):
        value = getattr(self._group, field)
        self._seen.add(f"{self._name}.{field}")
        return value


def watched(config):
    """``config`` and the set of its names that are read."""
    seen = set()
    groups = {name: Spy(name, getattr(config, name), seen) for name in ("env", "train")}
    return dataclasses.replace(config, **groups), seen


@pytest.mark.parametrize("preset", ["po_mpc", "bmpc"])
def test_the_settings_that_are_kept_are_those_that_are_read(preset):
    """A setting that a traced function reads but does not declare would be lost silently."""
    config = tiny.run(preset, env__task="probe/lqr")
    prog = program(config)
    state, seeds = jax.eval_shape(prog.init, config), train.own_seeds(config)

    spied, seen = watched(config)
    jax.eval_shape(lambda seeds: train.init(spied, prog.env, prog.spec, seeds), seeds)
    assert seen == train.INIT_READS

    spied, seen = watched(config)
    work = prog.training[0]
    jax.eval_shape(
        lambda state: train.chunk(state, spied, work, env=prog.env, spec=prog.spec), state
    )
    assert seen == train.CHUNK_READS

    spied, seen = watched(config)
    play = diagnostics.evaluate_run
    jax.eval_shape(lambda state: play(state, spied, env=prog.env, spec=prog.spec), state)
    assert seen <= diagnostics.READS
    # Seeds are split over devices by their number, whatever the function reads.
    assert diagnostics.READS - seen == {"train.num_seeds"}


UNREAD = {
    "train.seed": 7, "train.checkpoint_keep": 9, "train.eval_decisions": 20,
    "train.checkpoint_decisions": 40, "train.max_bad_updates": 3, "train.memory_limit_gb": 1.0,
    "train.total_decisions": 80, "train.chunk_decisions": 6, "train.on_broken_seed": "leave",
    "train.num_devices": 1, "train.max_seed_resets": 5, "train.pretrain_updates": 2,
    "train.updates_per_decision": 0.1, "train.seed_decisions": 24, "env.task": "probe/lqr",
    "env.backend": "host", "train.offline": True, "train.buffer": "a.npz",
}  # fmt: skip


def test_other_settings_do_not_compile_a_chunk_again():
    config, prog, *_ = base()
    other = config_lib.replace(config, UNREAD)
    state, _ = prog.chunk(prog.init(other), other, prog.seeding[0])
    assert prog.chunk._cache_size() == 1
    # The seed is read on the host, and not lost.
    data = jax.random.key_data
    assert (data(state.keys) == data(jax.vmap(jax.random.key)(jax.numpy.array([7])))).all()


def test_other_settings_do_not_compile_an_evaluation_again():
    config = tiny.run()
    functions, traces = functions_lib.build(config), []

    def count(function, reads):
        def traced(state, config):
            traces.append(config.train)
            return config.train.eval_episodes

        return dataclasses.replace(function, function=jax.jit(traced), reads=reads, finish=None)

    state = jax.numpy.zeros(())
    for function in (functions.evaluate_planner, functions.evaluate_policy):
        assert isinstance(function, Compiled)
        counted = count(function, function.reads)
        before = len(traces)
        for changes in ({}, UNREAD, {"train.seed": 3}, {"agent.policy.kl_coef": 3.0}):
            counted(state, config_lib.replace(config, changes))
        assert len(traces) == before + 1
        more = config_lib.replace(config, {"train.eval_episodes": 7})
        assert int(counted(state, more)) == 7 and len(traces) == before + 2


def test_reduced_settings_keep_the_agent_and_what_is_read():
    config = config_lib.replace(tiny.run(), UNREAD | {"train.num_seeds": 3})
    kept = reduced(config, frozenset({"train.num_seeds", "env.num_envs"}))
    assert kept.agent == config.agent and kept.train.num_seeds == 3
    assert kept.env.num_envs == config.env.num_envs
    assert kept.train == dataclasses.replace(Config().train, num_seeds=3)


@pytest.mark.parametrize(
    "changes,text",
    [({"train.num_seeds": 2}, "train.num_seeds = 2: the state was made with 1"),
     ({"env.num_envs": 4}, "env.num_envs = 4: the state was made with 2"),
     ({"train.capacity": 128}, "train.capacity = 128: the state was made with 64")],
)  # fmt: skip
def test_a_state_of_other_sizes_is_refused_by_name(changes, text):
    config, prog, *_ = base()
    with pytest.raises(ConfigError, match=text):
        prog.chunk(prog.init(config), config_lib.replace(config, changes), prog.seeding[0])


def test_programs_can_be_lowered_and_asked_for_shapes():
    config, prog, *_ = base()
    state = jax.eval_shape(prog.init, config)
    after, means = prog.chunk.eval_shape(state, config, prog.training[0])
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert means["loss/model"].shape == (1,)
    assert "while" in prog.chunk.lower(state, config, prog.training[0]).as_text()


@pytest.mark.parametrize("committed", [False, True])
def test_calls_find_what_was_compiled_ahead(committed, caplog):
    """For arrays that are gone by then, as those of a donated state are."""
    traces = []

    def function(x, config):
        traces.append(x.shape)
        return x * config.optimizer.discount

    one = Compiled(jax.jit(function), frozenset())
    x = jnp.arange(3.0)
    x = jax.device_put(x, jax.devices()[0]) if committed else x
    work = one.prepare(x, Config().agent)
    x.delete()
    work()
    assert len(traces) == 1
    again = jnp.arange(3.0)
    again = jax.device_put(again, jax.devices()[0]) if committed else again
    with jax.log_compiles(), caplog.at_level("DEBUG"):
        one(again, Config().agent)
    assert len(traces) == 1 and "ompil" not in caplog.text


def test_a_compilation_ahead_that_fails_leaves_the_error_to_the_call():
    def function(x):
        raise ValueError("as when called")

    ahead, one = Ahead(), Compiled(jax.jit(function), frozenset())
    ahead.start(one, args=(jnp.ones(()),))
    ahead.wait(one)
    assert not ahead.stop()
    with pytest.raises(ValueError, match="as when called"):
        one(jnp.ones(()))
    ahead.start(one, args=(jnp.ones(()),))  # after the end: nothing begins, nothing raises
    ahead.wait(one)


def test_the_initial_state_is_compiled_quickly_unless_a_level_is_asked_for(monkeypatch):
    """A program that runs once: what it costs is its compiler."""
    asked = []
    real = jax.jit

    def jit(function, **options):
        asked.append(options.get("compiler_options"))
        return real(function, **options)

    monkeypatch.setattr(jax, "jit", jit)
    config, made = base()[:2]
    for flags, level in (("", {compiled.LEVEL: 1}), (f"--{compiled.LEVEL}=0", {})):
        asked.clear()
        monkeypatch.setenv("XLA_FLAGS", flags)
        train.build(config, made.env)
        # The training step keeps XLA's own level.
        assert asked == [level, None]
