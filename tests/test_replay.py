"""The replay ring against an oracle that keeps every row in a list."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax import replay
from pomcp_jax.replay import Index, Replay, Row
from pomcp_jax.types import Gaussian

CAPACITY, ENVS, OBS, ACTIONS, LENGTH, BATCH = 8, 3, 2, 1, 4, 64
FRESH = -1.0
"""Planner value of rows without a write-back."""

insert = jax.jit(replay.insert)
write_back = jax.jit(replay.write_back)
read = jax.jit(replay.read)
sample = jax.jit(replay.sample, static_argnums=(2, 3))


def make_row(number, last=False, num_envs=ENVS):
    """Row ``number`` of every environment; each number in it names (row, environment)."""
    name = np.float32(number * 100 + np.arange(num_envs))
    vector = np.stack([name], -1)
    return Row(
        obs=jnp.asarray(np.stack([name, -name], -1)),
        action=jnp.asarray(vector),
        reward=jnp.asarray(name),
        terminated=jnp.asarray((np.arange(num_envs) + number) % 3 == 0),
        last=jnp.asarray(np.broadcast_to(last, (num_envs,))),
        prior=Gaussian(jnp.asarray(vector + 0.25), jnp.asarray(vector + 0.5)),
        prior_value=jnp.full((num_envs,), FRESH),
        made=jnp.full((num_envs,), number, jnp.int32),
    )


def fill(num_rows, lasts=None):
    """A ring with ``num_rows`` inserted, and the oracle: the list of its rows."""
    ring = replay.init(CAPACITY, ENVS, OBS, ACTIONS)
    rows = []
    for number in range(num_rows):
        row = make_row(number, False if lasts is None else lasts[number])
        rows.append(jax.tree.map(np.asarray, row))
        ring = insert(ring, row)
    return ring, rows


def stack(rows):
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def held(ring, first, number):
    """Rows ``first``, ``first + 1``, ... of every environment, in order."""
    row = np.broadcast_to(first + np.arange(number)[:, None], (number, ENVS))
    return read(ring, Index(jnp.asarray(row), jnp.asarray(np.arange(ENVS) + 0 * row)))


NUM_ROWS = st.integers(LENGTH, 3 * CAPACITY + 1)
SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def filled(draw):
    """A ring, its oracle and a key; episodes of any length, ended by chance."""
    number = draw(NUM_ROWS)
    chance = np.random.default_rng(draw(SEEDS))
    lasts = chance.random((number, ENVS)) < draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    return *fill(number, lasts), jax.random.key(draw(SEEDS))


# -------------------------------------------------------------------- inserting


@hypothesis.given(NUM_ROWS)
def test_ring_keeps_the_newest_rows_in_order(number):
    ring, rows = fill(number)
    size = min(number, CAPACITY)
    assert_same(held(ring, number - size, size), stack(rows[-size:]))


@pytest.mark.parametrize("number", [0, 1, CAPACITY - 1, CAPACITY, CAPACITY + 1, 3 * CAPACITY])
def test_size_grows_up_to_the_capacity(number):
    assert fill(number)[0].size == min(number, CAPACITY)


def test_capacity_is_the_rows_of_one_environment():
    assert replay.init(5, 3, 2, 1).capacity == 5


def test_insert_changes_one_row_only():
    before, _ = fill(CAPACITY + 3)
    after = insert(before, make_row(99))
    changed = np.any(np.asarray(before.rows.reward != after.rows.reward), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [3])


def test_insert_keeps_the_dtype_of_the_ring():
    ring = replay.init(4, ENVS, OBS, ACTIONS, jnp.bfloat16)
    assert insert(ring, make_row(0)).rows.obs.dtype == jnp.bfloat16


def test_empty_ring_holds_no_transition():
    assert np.all(replay.init(4, 2, 3, 1).rows.last)


# --------------------------------------------------------------------- sampling


@hypothesis.given(filled())
def test_sampled_rows_are_the_rows_of_the_index(case):
    ring, rows, key = case
    batch = sample(ring, key, BATCH, LENGTH)
    row, env = np.asarray(batch.index.row), np.asarray(batch.index.env)
    assert_same(batch.rows, jax.tree.map(lambda x: x[row, env], stack(rows)))


@hypothesis.given(filled())
def test_sampled_rows_are_held(case):
    ring, rows, key = case
    row = np.asarray(sample(ring, key, BATCH, LENGTH).index.row)
    assert len(rows) - min(len(rows), CAPACITY) <= row.min() <= row.max() < len(rows)


@hypothesis.given(filled())
def test_windows_are_consecutive_rows(case):
    ring, _, key = case
    row = np.asarray(sample(ring, key, BATCH, LENGTH).index.row)
    np.testing.assert_array_equal(np.diff(row, axis=0), 1)


@hypothesis.given(filled())
def test_windows_stay_in_one_environment(case):
    ring, _, key = case
    env = np.asarray(sample(ring, key, BATCH, LENGTH).index.env)
    np.testing.assert_array_equal(env, np.broadcast_to(env[0], env.shape))


@hypothesis.given(filled())
def test_valid_means_no_episode_end_since_the_start(case):
    ring, rows, key = case
    batch = sample(ring, key, BATCH, LENGTH)
    for b in range(BATCH):
        env, first = batch.index.env[0, b], batch.index.row[0, b]
        ends = [bool(rows[first + t].last[env]) for t in range(LENGTH)]
        expected = [not any(ends[:t]) for t in range(LENGTH)]
        np.testing.assert_array_equal(batch.valid[:, b], expected)


@hypothesis.given(filled())
def test_no_transition_crosses_an_episode_end(case):
    """By the oracle's count of episodes: both ends of a transition have the same number."""
    ring, rows, key = case
    batch = sample(ring, key, BATCH, LENGTH)
    lasts = np.stack([row.last for row in rows])
    episode = np.cumsum(lasts, axis=0) - lasts
    number = episode[np.asarray(batch.index.row), np.asarray(batch.index.env)]
    same = (number[1:] == number[:-1]) & (number[:-1] == number[0])
    np.testing.assert_array_equal(batch.transition, same)


@hypothesis.given(filled())
def test_windows_that_reach_beyond_the_newest_row_end_there(case):
    ring, rows, key = case
    batch = replay.sample(ring, key, 64, LENGTH + 3, LENGTH)
    starts = np.asarray(batch.index.row[0])
    assert starts.max() <= len(rows) - LENGTH
    lasts = np.stack([row.last for row in rows])
    for b, first in enumerate(starts):
        env = batch.index.env[0, b]
        # What is there, and then nothing: as the end of an episode.
        ends = [*lasts[first : first + LENGTH + 3, env]]
        ends += [True] * (LENGTH + 3 - len(ends))
        there = [first + t < len(rows) for t in range(LENGTH + 3)]
        expected = [not any(ends[: t + 1]) and there[t + 1] for t in range(LENGTH + 2)]
        np.testing.assert_array_equal(batch.transition[:, b], expected)


def test_long_windows_start_everywhere_that_short_ones_do():
    ring, _ = fill(CAPACITY + 3)
    index = replay.sample(ring, jax.random.key(1), 4000, LENGTH + 3, LENGTH).index
    expected = set(range(3, CAPACITY + 3 - LENGTH + 1))
    assert set(np.asarray(index.row[0]).tolist()) == expected


def test_window_of_one_episode_is_all_transitions():
    """Guards the tests above: masking everything would be wrong."""
    ring, _ = fill(CAPACITY + 2)
    assert np.all(sample(ring, jax.random.key(0), BATCH, LENGTH).transition)


@pytest.mark.parametrize("number", [CAPACITY - 2, 2 * CAPACITY + 3])
def test_starts_and_environments_are_drawn_uniformly(number):
    """Every pair within five standard deviations of its expected count."""
    ring, _ = fill(number)
    draws = 20_000
    index = sample(ring, jax.random.key(1), draws, LENGTH).index
    size = min(number, CAPACITY)
    starts = size - LENGTH + 1
    place = (np.asarray(index.row[0]) - (number - size)) * ENVS + np.asarray(index.env[0])
    counts = np.bincount(place, minlength=starts * ENVS)
    share = 1 / (starts * ENVS)
    bound = 5 * np.sqrt(draws * share * (1 - share))
    np.testing.assert_allclose(counts, draws * share, atol=bound)


def test_shortest_ring_has_one_window():
    ring, _ = fill(LENGTH)
    row = sample(ring, jax.random.key(0), BATCH, LENGTH).index.row
    np.testing.assert_array_equal(row, np.broadcast_to(np.arange(LENGTH)[:, None], row.shape))


def test_equal_keys_draw_equal_batches():
    ring, _ = fill(CAPACITY)
    assert_same(*(sample(ring, jax.random.key(5), BATCH, LENGTH) for _ in range(2)))


def test_other_keys_draw_other_batches():
    ring, _ = fill(CAPACITY)
    one, two = (sample(ring, jax.random.key(k), BATCH, LENGTH).index.row for k in (5, 6))
    assert np.any(one != two)


# ---------------------------------------------------------------- writing records


def records(index):
    """New records, each naming its row and environment."""
    name = (index.row * 100 + index.env).astype(jnp.float32) + 0.125
    made = index.row * 10 + index.env
    return Gaussian(name[..., None], name[..., None] + 0.5), name + 1000.0, made


@st.composite
def rewritten(draw):
    """A sampled index of a few rows, then 0 to C + 2 more insertions, then the records."""
    ring, rows, key = draw(filled())
    index = sample(ring, key, 2, LENGTH).index
    for number in range(len(rows), len(rows) + draw(st.integers(0, CAPACITY + 2))):
        rows.append(jax.tree.map(np.asarray, make_row(number)))
        ring = insert(ring, make_row(number))
    return write_back(ring, index, *records(index)), rows, index


@hypothesis.given(rewritten())
def test_write_back_changes_the_named_rows_that_are_still_held(case):
    """The oracle writes to its list, in which no row is ever overwritten."""
    ring, rows, index = case
    expected = stack(rows)
    prior, value, made = jax.tree.map(np.asarray, records(index))
    at = np.asarray(index.row), np.asarray(index.env)
    expected.prior.mean[at], expected.prior.std[at] = prior
    expected.prior_value[at] = value
    expected.made[at] = made
    size = min(len(rows), CAPACITY)
    newest = jax.tree.map(lambda x: x[-size:], expected)
    assert_same(held(ring, len(rows) - size, size), newest)


def test_write_back_does_write():
    """Guards the test above."""
    ring, _ = fill(CAPACITY)
    index = sample(ring, jax.random.key(0), 1, LENGTH).index
    ring = write_back(ring, index, *records(index))
    assert np.sum(ring.rows.prior_value != FRESH) == LENGTH


def test_write_back_keeps_the_last_of_records_for_one_place():
    """Whole: mean, standard deviation, value and age of the same plan."""
    ring, _ = fill(CAPACITY)
    index = Index(jnp.array([[1, 1], [2, 1]], jnp.int32), jnp.zeros((2, 2), jnp.int32))
    new = jnp.arange(4.0).reshape(2, 2)
    made = new.astype(jnp.int32) + 7
    out = write_back(ring, index, Gaussian(new[..., None], new[..., None] + 0.5), new, made)
    for row, want in ((1, 3.0), (2, 2.0)):
        at = row % CAPACITY, 0
        rows = out.rows
        held = rows.prior.mean[at][0], rows.prior.std[at][0], rows.prior_value[at], rows.made[at]
        np.testing.assert_array_equal(held, [want, want + 0.5, want, want + 7])


def test_write_back_drops_overwritten_rows():
    ring, _ = fill(CAPACITY)
    index = Index(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    ring = insert(ring, make_row(CAPACITY))
    assert_same(write_back(ring, index, *records(index)), ring)


def test_write_back_drops_rows_not_inserted_yet():
    ring, _ = fill(3)
    index = Index(jnp.full((1, 1), 5), jnp.zeros((1, 1), jnp.int32))
    assert_same(write_back(ring, index, *records(index)), ring)


# ------------------------------------------------------------------ seeds, bytes


def seeded(number, num_seeds=2):
    """Rings of two seeds filled together by ``vmap``, and each filled alone."""
    one = replay.init(CAPACITY, ENVS, OBS, ACTIONS)
    many = Replay(jax.tree.map(lambda x: jnp.stack([x] * num_seeds), one.rows), one.inserted)
    alone = [one] * num_seeds
    insert_all = jax.jit(jax.vmap(replay.insert, in_axes=(replay.SEEDS, 0), out_axes=replay.SEEDS))
    for t in range(number):
        rows = [make_row(t + 500 * s, t % (3 + s) == 2) for s in range(num_seeds)]
        many = insert_all(many, jax.tree.map(lambda *x: jnp.stack(x), *rows))
        alone = [insert(ring, row) for ring, row in zip(alone, rows, strict=True)]
    return many, alone


@functools.cache
def wrapped():
    return seeded(CAPACITY + 3)


def test_inserting_for_seeds_equals_separate_rings():
    many, alone = wrapped()
    assert_same(many.rows, stack([ring.rows for ring in alone]))


def test_seeds_share_one_cursor():
    assert wrapped()[0].inserted == CAPACITY + 3


def test_sampling_for_seeds_equals_separate_rings():
    many, alone = wrapped()
    keys = jax.random.split(jax.random.key(0), 2)
    draw = functools.partial(replay.sample, batch_size=5, length=LENGTH)
    out = jax.jit(jax.vmap(draw, in_axes=(replay.SEEDS, 0)))(many, keys)
    each = [sample(ring, key, 5, LENGTH) for ring, key in zip(alone, keys, strict=True)]
    assert_same(out, stack(each))


def test_writing_back_for_seeds_equals_separate_rings():
    many, alone = wrapped()
    numbers = jnp.asarray([[[1], [4]], [[9], [10]]])
    index = Index(numbers, numbers % ENVS)
    write = jax.vmap(replay.write_back, in_axes=(replay.SEEDS, 0, 0, 0, 0), out_axes=replay.SEEDS)
    out = jax.jit(write)(many, index, *records(index))
    each = []
    for seed, ring in enumerate(alone):
        one = jax.tree.map(lambda x, s=seed: x[s], index)
        each.append(write_back(ring, one, *records(one)).rows)
    assert_same(out.rows, stack(each))


@pytest.mark.parametrize("obs,actions", [(1, 1), (5, 2), (223, 38)])
def test_row_bytes_is_what_a_row_takes(obs, actions):
    rows = replay.init(6, 2, obs, actions).rows
    assert sum(x.nbytes for x in jax.tree.leaves(rows)) == 12 * replay.row_bytes(obs, actions)
