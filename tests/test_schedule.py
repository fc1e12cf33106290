"""The schedule of updates is even and exact for any ratio, chunks and interruptions."""

import dataclasses
import functools
import time
from fractions import Fraction

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_train import assert_same, play, program

from pomcp_jax import schedule, state_edits, train, values
from pomcp_jax.config import ConfigError
from pomcp_jax.train import Ratio, Work


def with_ratio(value, num_envs=1, **changes):
    """A configuration with the ratio unconverted, also if it is a numpy number."""
    config = tiny.run(env__num_envs=num_envs, **changes)
    config_train = dataclasses.replace(config.train, updates_per_decision=value)
    return dataclasses.replace(config, train=config_train)


def updates_after(works):
    """Updates after every iteration, as the device counts them."""
    done, after = 0, []
    for work in works:
        phase = work.phase
        for _ in range(work.groups):
            phase += work.part
            due = work.updates + (phase >= work.parts)
            phase -= work.parts * (phase >= work.parts)
            done += due
            after += [done] * work.iterations
    return after


@pytest.mark.parametrize(
    "per_decision,num_envs,expected",
    [(1.0, 1, (1, 1)), (0.5, 1, (2, 1)), (0.25, 2, (2, 1)), (0.5, 4, (1, 2)), (1.5, 1, (2, 3)),
     (0.0, 4, (1, 0)), (1 / 3, 1, (3, 1)), (1 / 2048, 2048, (1, 1)), (1 / 1024, 1024, (1, 1)),
     (1 / 4096, 2048, (2, 1)), (0.333, 1, (1000, 333)), (1e-9, 1, (10**9, 1)),
     (np.float32(0.5), 4, (1, 2)), (np.float32(1 / 3), 3, (1, 1)), (np.float32(0.1), 1, (10, 1)),
     (np.float16(0.1), 1, (10, 1)), (2, 3, (1, 6)), (np.int64(2), 3, (1, 6)),
     (Fraction(2, 7), 1, (7, 2)), (1 / 997, 1, (997, 1)), (2 / 3, 3, (1, 2)), (0.1, 7, (10, 7)),
     (1 / 3 + 1, 1, (3, 4)), (np.array(0.25), 2, (2, 1)), (1e3, 2, (1, 2000))],
)  # fmt: skip
def test_the_rational_that_is_meant(per_decision, num_envs, expected):
    assert train.ratio(with_ratio(per_decision, num_envs)) == Ratio(*expected)


ratios = st.one_of(
    st.floats(1e-3, 20.0, allow_subnormal=False),
    st.fractions(Fraction(1, 500), 20, max_denominator=2000).map(float),
    st.decimals("0.001", "20", places=3).map(float),
)


@given(ratios, st.integers(1, 40), st.integers(1, 1000), st.integers(0, 400))
def test_updates_are_even_and_exact(per_decision, num_envs, chunk, iterations):
    """After t + 1 iterations floor((t + 1) u) are done, wherever chunks end."""
    seeding = 2 * num_envs * 4
    config = with_ratio(
        per_decision, num_envs, train__capacity=10_000, train__seed_decisions=seeding,
        train__chunk_decisions=chunk, train__total_decisions=seeding + num_envs * (iterations + 1),
    )  # fmt: skip
    try:
        works = schedule.phases(config).training
    except ConfigError:
        assert values.rational(per_decision).denominator * num_envs > schedule.PARTS
        return
    u = values.rational(per_decision) * num_envs
    wanted = [int((t + 1) * u) for t in range(iterations + 1)]
    assert updates_after(works) == wanted
    entered = dataclasses.replace(works, start=iterations // 2)
    assert (
        updates_after(entered) == [n - int(iterations // 2 * u) for n in wanted][iterations // 2 :]
    )
    assert sum(work.total_updates for work in works) == wanted[-1]
    most = max(1, chunk // num_envs)
    assert all(work.total_iterations == most for work in works[:-1])


@given(st.floats(1e-6, 1e3, allow_subnormal=False))
def test_a_float_is_the_fraction_that_rounds_to_it(value):
    found = values.rational(value)
    assert float(found) == value
    assert found.denominator <= Fraction(value).denominator
    assert values.rational(-value) == -found


@functools.cache
def odd():
    """5 updates in 7 iterations of 2 environments, more than one in some iterations."""
    return odd_program(5 / 14, 10)


def odd_program(per_decision, chunk):
    config = with_ratio(per_decision, 2, train__chunk_decisions=chunk)
    prog = program(config)
    return config, prog, *play(prog, config, prog.seeding + prog.pretraining + prog.training)


@pytest.mark.parametrize("chunk", [2, 6, 1000])
def test_an_odd_ratio_gives_the_same_bits_in_chunks_of_any_length(chunk):
    config, prog, state, _ = odd()
    assert int(state.updates) == 4 + 20 * 5 // 7
    works = schedule.phases(
        dataclasses.replace(config, train=dataclasses.replace(config.train, chunk_decisions=chunk))
    )
    other, _ = play(prog, config, [*works.seeding, *works.pretraining, *works.training])
    assert_same(state, other)
    assert prog.chunk._cache_size() == 1


@pytest.mark.parametrize("at", [(3, 0), (10, 2), (13, 6), (17, 9), (24, 14)])
def test_an_odd_ratio_goes_on_where_it_was_left(at):
    config, prog, whole, _ = odd()
    ahead, left = state_edits.leading_to(prog, *at), state_edits.remaining(prog, *at)
    assert sum(work.total_updates for _, work in ahead) == at[1]
    state, _ = play(prog, config, [work for _, work in ahead])
    assert (int(state.iteration), int(state.updates)) == at
    for _, work in left:
        state, _ = prog.chunk(state, config, work)
    assert_same(whole, state)


def test_the_compiled_loop_does_several_updates_an_iteration_or_none():
    """4 updates in 3 iterations: the whole part and the remainder."""
    config, prog, *_ = odd()
    state = prog.init(config)
    for work in prog.seeding:
        state, _ = prog.chunk(state, config, work)
    seen = []
    for t in range(7):
        state, metrics = prog.chunk(state, config, Work(1, 1, 1, False, True, True, 1, 3, t % 3))
        seen.append(int(state.updates))
        assert np.isfinite(metrics["loss/model"]).all()
    assert seen == [1, 2, 4, 5, 6, 8, 9]
    state, metrics = prog.chunk(state, config, Work(2, 1, 0, False, True, True, 1, 3, 0))
    assert int(state.updates) == 9 and np.isnan(metrics["loss/model"]).all()


# Refusals


@pytest.mark.parametrize(
    "per_decision,num_envs,text",
    [(1e-9, 1, "train.updates_per_decision = 1e-09: no update in 40 decisions.*>= 1/40"),
     (1 / 41, 1, "no update in 40 decisions"), (1e-9, 2, "no update in 40 decisions"),
     (np.float32(1e-6), 1, "no update in 40 decisions"),
     (1.2345678901234567e-7, 1, r"denominator <= 1073741824 \(the nearest is"),
     (float("nan"), 1, "train.updates_per_decision = nan: must be finite"),
     (np.float32("inf"), 1, "train.updates_per_decision = inf: must be"),
     (-0.5, 1, "train.updates_per_decision = -0.5: must be")],
)  # fmt: skip
def test_ratios_that_cannot_be_met_are_refused_by_name(per_decision, num_envs, text):
    config = with_ratio(per_decision, num_envs)
    with pytest.raises(ConfigError, match=text):
        program(config)
    with pytest.raises(ConfigError, match="train.updates_per_decision"):
        schedule.check(config)


def test_the_smallest_ratio_that_is_named_works():
    config = with_ratio(1 / 40, 1)
    assert sum(work.total_updates for work in schedule.phases(config).training) == 1


@pytest.mark.parametrize(
    "changes,text",
    [({"total_decisions": 2**31}, "train.total_decisions = 2147483648.*below 2[*][*]31"),
     ({"total_decisions": 2**31 - 1}, "makes 2147483648 decisions in steps of env.num_envs = 2"),
     ({"pretrain_updates": 2**31}, "train.pretrain_updates = 2147483648: must be < 2[*][*]31"),
     ({"total_decisions": 2 * 10**9, "updates_per_decision": 2.0},
      r"train.updates_per_decision = 2.0: makes 39999999\d\d updates.*below 2[*][*]31"),
     ({"pretrain_updates": 2**31 - 5}, "train.updates_per_decision = 0.5: makes 2147483663")],
)  # fmt: skip
def test_what_the_device_cannot_count_is_refused_by_name(changes, text):
    config = tiny.run(**{f"train__{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=text):
        program(config)


def test_two_thousand_million_chunks_cost_nothing():
    begin = time.process_time()
    config = tiny.run(
        train__total_decisions=2_000_000_000, train__chunk_decisions=1, env__num_envs=1,
    )  # fmt: skip
    prog = program(config)
    assert len(prog.training) == 2_000_000_000 - 20
    assert prog.training[10**9].phase == 0 and prog.training[10**9 + 1].phase == 1
    left = state_edits.remaining(prog, 10**9, 4 + (10**9 - 20) // 2)
    assert len(left) == 10**9 and next(iter(left))[0] == "training"
    assert len(state_edits.leading_to(prog, 10**9, 4 + (10**9 - 20) // 2)) == 10**9 + 4
    assert time.process_time() - begin < 2


def test_chunks_are_a_sequence():
    chunks = schedule.Chunks(25, 10, lambda before, size: (before, size))
    assert list(chunks) == [(0, 10), (10, 10), (20, 5)] == list(chunks[:])
    assert chunks[-1] == (20, 5) and chunks[1:] == ((10, 10), (20, 5))
    assert chunks + chunks[:1] == (*chunks, (0, 10)) and () + chunks == tuple(chunks)
    assert list(dataclasses.replace(chunks, start=13)) == [(13, 7), (20, 5)]
    assert list(dataclasses.replace(chunks, start=20)) == [(20, 5)]
    assert not dataclasses.replace(chunks, start=25) and not dataclasses.replace(chunks, stop=0)
    with pytest.raises(IndexError):
        chunks[3]


def test_the_random_phase_is_cut_like_the_others():
    _, prog, *_ = odd()
    assert [work.iterations for work in prog.seeding] == [5, 5]
    assert all(work.random and not work.total_updates for work in prog.seeding)


def test_jax_numbers_are_work_too():
    config, prog, *_ = odd()
    works = jax.tree.map(jax.numpy.asarray, prog.seeding[0])
    state, metrics = prog.chunk(prog.init(config), config, works)
    assert int(state.iteration) == 5 and np.isnan(metrics["plan/std"]).all()
