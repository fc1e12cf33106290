"""Files of transitions: layouts, what is refused, and how rows are laid out for environments."""

import functools
import io
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pomcp_jax import datasets
from pomcp_jax.config import ConfigError
from pomcp_jax.datasets import Rows

T, OBS, A = 7, 3, 2


def arrays(lengths=(3, 4), ended=(True, False), **changes):
    """Fields of a file whose every number names its transition; episodes of ``lengths``."""
    number = sum(lengths)
    ends = np.zeros(number, bool)
    ends[np.cumsum(lengths) - 1] = True
    terminals = np.zeros(number, bool)
    terminals[ends] = ended
    starts = np.repeat(np.arange(len(lengths)), lengths)
    obs = (np.arange(number) + starts)[:, None] + np.arange(OBS) / 10.0
    fields = {
        "observations": obs,
        "actions": np.linspace(-1, 1, number * A).reshape(number, A),
        "rewards": np.arange(number) * 2.0,
        "terminals": terminals,
        "timeouts": ends & ~terminals,
        "next_observations": obs + 1.0,
    }
    fields |= changes
    return {name: x for name, x in fields.items() if x is not None}


def saved(path, **fields):
    np.savez(path, **fields)
    return path


def transitions(rows):
    """All transitions of rows ``[R]``: a list of tuples."""
    at = np.flatnonzero(~rows.last)
    return [
        (*rows.obs[t], *rows.action[t], rows.reward[t], rows.terminated[t], *rows.obs[t + 1])
        for t in at
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


# ------------------------------------------------------------------------- layouts


def expected(fields):
    x = {name: np.asarray(value, np.float32) for name, value in fields.items()}
    return [
        (*o, *a, r, bool(d), *n)
        for o, a, r, d, n in zip(
            *(x[name] for name in ("observations", "actions", "rewards", "terminals")),
            x["next_observations"],
            strict=True,
        )
    ]


def with_final(fields):
    """The layout with every episode's final observation behind its others."""
    ends = np.flatnonzero(fields["terminals"] | fields["timeouts"])
    obs = np.insert(fields["observations"], ends + 1, fields["next_observations"][ends], axis=0)
    return {k: v for k, v in fields.items() if k != "next_observations"} | {"observations": obs}


def test_layouts_with_all_observations_are_the_same_rows(folder):
    fields = arrays()
    minari = with_final(fields)
    minari["terminations"], minari["truncations"] = minari.pop("terminals"), minari.pop("timeouts")
    columns = fields | {k: fields[k][:, None] for k in ("rewards", "terminals", "timeouts")}
    unmarked = fields | {"timeouts": np.zeros(T, bool)}
    for layout in (fields, with_final(fields), minari, columns, unmarked):
        rows = datasets.read(saved(folder / "a.npz", **layout)).rows
        assert transitions(rows) == expected(fields)
        assert (rows.transitions, rows.episodes) == (T, 2) and rows.obs.dtype == np.float32
        assert not rows.recorded.any()


def test_without_final_observations_the_last_transition_of_an_episode_is_lost(folder):
    fields = arrays(ended=(False, False))
    here = fields | {"next_observations": fields["observations"]}
    rows = datasets.read(saved(folder / "a.npz", **here)).rows
    assert rows.transitions == T, "every row is an episode of its own"
    del fields["next_observations"]
    rows = datasets.read(saved(folder / "a.npz", **fields)).rows
    full = expected(arrays(ended=(False, False)))
    assert transitions(rows) == [full[i] for i in (0, 1, 3, 4, 5)]


def test_actions_in_other_units(folder):
    low, high = np.array([-1e4, 0.0]), np.array([1e4, 5.0])
    actions = np.array([[-1e4, 0.0], [1e4, 5.0], [0.0, 2.5]])
    fields = arrays((3,), (False,), actions=actions, low=low, high=high)
    rows = datasets.read(saved(folder / "a.npz", **fields)).rows
    np.testing.assert_array_equal(rows.action[:3], [[-1, -1], [1, 1], [0, 0]])


def test_what_a_file_says_of_itself(folder):
    more = {"task": "reach", "action_repeat": 4, "history": 2, "infos/qpos": np.zeros(3)}
    data = datasets.read(saved(folder / "a.npz", **arrays(), **more))
    assert data[1:] == ("reach", 4, 2, ("infos/qpos",))


def test_written_files_are_read_back(folder):
    rows = datasets.read(saved(folder / "a.npz", **arrays())).rows
    mean = np.full_like(rows.action, 0.25)
    std = mean * 2 * (np.arange(len(mean))[:, None] % 2).astype(np.float32)
    rows = rows._replace(prior_mean=mean, prior_std=std, prior_value=rows.reward)
    size = datasets.write(folder / "b.npz", rows, task="x", action_repeat=2)
    assert size == (folder / "b.npz").stat().st_size
    back = datasets.read(folder / "b.npz")
    assert back.task == "x" and back.action_repeat == 2 and back.history == 1
    live = ~rows.last
    for ours, theirs in zip(rows, back.rows, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours[live], theirs[live])
    np.testing.assert_array_equal(rows.obs, back.rows.obs)
    np.testing.assert_array_equal(rows.last, back.rows.last)


# ----------------------------------------------------------------------- bad files


def raw(name, data):
    """Bytes of an archive with one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


NAN = arrays()["observations"].copy()
NAN[2, 1] = np.nan
BAD = {
    "actions": ({"actions": None}, "holds no actions (but observations, rewards, "),
    "misspelt": (
        {"terminals": None, "terminal": np.zeros(T)},
        "terminal: unknown array; did you mean terminals?",
    ),
    "empty": (
        {k: v[:0] for k, v in arrays().items()},
        "holds no transitions; must hold at least one",
    ),
    "ragged": (
        {"rewards": np.zeros(T - 1)},
        "rewards has 6 rows, actions 7; must be one for each transition",
    ),
    "short": (
        {"observations": np.zeros((T - 1, OBS)), "next_observations": None},
        "observations has 6 rows, actions 7; must be as many, or 9 with the final observations of"
        " all 2 episodes",
    ),
    "shape": ({"actions": np.zeros(T)}, "actions has shape [7]; must be [T, size]"),
    "image": ({"observations": np.zeros((T, 2, 2))}, "has shape [7, 2, 2]; must be [T, size]"),
    "text": ({"rewards": np.array(["x"] * T)}, "rewards holds <U1; must be an array of numbers"),
    "objects": (
        {"rewards": np.array([None] * T, object)},
        "rewards holds Python objects, which are not read",
    ),
    "nan": ({"observations": NAN}, "observations[2, 1] = nan: must be finite in float32"),
    "large": ({"rewards": np.full(T, 1e39)}, "rewards[0] = 1e+39 (one of 7): must be finite"),
    "outside": (
        {"actions": np.full((T, A), 2.0)},
        "actions[0, 0] = 2, and 14 in all, lie outside; must be within [-1, 1], or the file hold",
    ),
    "bounds": (
        {"low": np.ones(A), "high": np.ones(A)},
        "low [2] and high [2] must be [2] each, the first below the second",
    ),
    "low": ({"low": np.ones(A)}, "holds low alone; must hold low and high, or neither"),
    "flags": ({"terminals": np.full(T, 2)}, "terminals must be [T] of booleans, or of 0 and 1"),
    "both": ({"terminations": np.zeros(T)}, "holds terminations and terminals; must hold one"),
    "next": (
        {"next_observations": np.zeros((T, OBS + 1))},
        "next_observations has shape [7, 4]; must be [7, 3]",
    ),
    "terminals": (
        {"next_observations": None},
        "holds no next_observations, but 1 terminals; must hold the observations after them",
    ),
    "ends": (
        {"next_observations": None, "terminals": None, "timeouts": None},
        "nothing says where episodes end; must hold next_observations, or terminals and timeouts",
    ),
    "mean": ({"prior_mean": np.zeros((T, A))}, "holds prior_mean alone; must hold prior_mean and"),
    "std": (
        {"prior_mean": np.zeros((T, A)), "prior_std": -np.ones((T, A))},
        "prior_std has negative entries; must be > 0, or 0 without a record",
    ),
    "repeat": ({"action_repeat": 0.5}, "action_repeat = 0.5: must be a whole number >= 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_contents_are_one_line(folder, case):
    changes, text = BAD[case]
    path = saved(folder / "bad.npz", **arrays(**changes))
    with pytest.raises(ConfigError) as error:
        datasets.read(path, "train.buffer")
    message = str(error.value)
    assert message.startswith(f"train.buffer = '{path}': ") and "\n" not in message
    assert text in message


WHOLE = io.BytesIO()
np.savez_compressed(WHOLE, **arrays())
FILES = {
    "missing": (None, "No such file or directory"),
    "no zip": (b"x" * 100, "is no .npz file; must be one that numpy.savez writes"),
    "nothing": (b"", "is no .npz file"),
    "cut": (WHOLE.getvalue()[:-300], "is no .npz file"),
    "flipped": (WHOLE.getvalue().replace(b"\x93NUMPY", b"NUMPYxx") , None),
    "other zip": (raw("a.txt", "x"), "holds no observations (but a.txt)"),
    "no array": (raw("actions.npy", "x"), "is damaged (actions is no array)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_one_line(folder, case):
    data, text = FILES[case]
    if text is None:
        data = bytearray(WHOLE.getvalue())
        data[80] ^= 0xFF
        text = "is damaged"
    path = folder / f"{case}.npz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        datasets.read(path, "train.buffer")
    assert text in str(error.value) and "\n" not in str(error.value)


def test_folders_and_files_beyond_the_memory_are_one_line(folder):
    with pytest.raises(ConfigError, match="Is a directory"):
        datasets.read(folder)
    path = saved(folder / "a.npz", **arrays())
    with pytest.raises(ConfigError, match=r"of arrays; must be <= train.memory_limit_gb = 1e-07"):
        datasets.read(path, most_bytes=100)


# ---------------------------------------------------------------- rows of replay


def made(lengths):
    """Rows of episodes of these lengths; every observation is another number."""
    number = sum(lengths) + len(lengths)
    last = np.zeros(number, bool)
    last[np.cumsum(np.array(lengths) + 1) - 1] = True
    name = np.arange(number, dtype=np.float32)[:, None]
    zeros = np.zeros_like(name)
    return Rows(name, name / 1e3, name[:, 0], last & False, last, zeros, zeros, name[:, 0])


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@hypothesis.given(LENGTHS, st.integers(1, 5))
def test_columns_have_every_transition_once(lengths, num_envs):
    rows = made(lengths)
    laid = datasets.columns(rows, num_envs)
    assert laid.last.shape[1] == num_envs and laid.last[-1].all()
    seen = [
        t for n in range(num_envs) for t in transitions(Rows(*(x[:, n] for x in laid)))
    ]  # fmt: skip
    assert seen == transitions(rows)


@hypothesis.given(LENGTHS, st.integers(1, 4))
def test_history_is_that_of_a_loop(lengths, history):
    rows = made(lengths)
    first, want = 0, []
    for t in range(len(rows.last)):
        want.append([rows.obs[max(t - lag, first), 0] for lag in reversed(range(history))])
        first = t + 1 if rows.last[t] else first
    np.testing.assert_array_equal(datasets.with_history(rows, history).obs, want)


@hypothesis.given(LENGTHS, st.integers(2, 30), st.integers(0, 20))
def test_a_ring_gives_the_transitions_that_it_still_has(lengths, capacity, more):
    """Two environments; the second is ``more`` rows longer, and the first repeats its end."""
    both = [made(lengths), made([*lengths, more + 1])]
    inserted = max(len(x.last) for x in both) - 1
    ring = Rows(*(np.zeros((capacity, 2, *x.shape[1:]), x.dtype) for x in both[0]))
    for t in range(inserted):
        for n, rows in enumerate(both):
            for field, x in zip(ring, rows, strict=True):
                field[t % capacity, n] = x[t] if t < len(x) else x[-1]
    want = []
    for rows in both:
        held = [transitions(rows)[i] for i, t in enumerate(np.flatnonzero(~rows.last))
                if t >= inserted - capacity and t + 1 < inserted]  # fmt: skip
        want += held
    assert transitions(datasets.of_ring(ring, inserted)) == want


def test_joined_parts_drop_episodes_without_a_transition():
    rows = functools.reduce(
        lambda a, b: Rows(*map(np.concatenate, zip(a, b, strict=True))),
        [Rows(*(x[1:] for x in made([1]))), made([2])],
    )
    out = datasets.joined([rows, made([1])])
    assert (out.transitions, out.episodes) == (3, 2)
