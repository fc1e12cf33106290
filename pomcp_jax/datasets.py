"""Transitions in files: demonstrations, a robot's log, the replay of a run.

A file is an ``.npz`` of plain arrays with D4RL's names, its episodes one after another. T is the
number of transitions, O and A are the sizes of observation and action:

====================  ========  ==================================================================
observations          [T, O]    before each action; or [T + episodes, O], each episode's final one
                                behind its others
actions               [T, A]    in [-1, 1], or in the units of ``low`` and ``high``
rewards               [T]       of each action
terminals             [T]       the action led to a terminal state (``terminations``: the same)
timeouts              [T]       the episode was cut after the action (``truncations``: the same)
next_observations     [T, O]    after each action
low, high             [A]       actions that become -1 and 1
prior_mean            [T, A]    the planner's record in the state; needs ``prior_std``
prior_std             [T, A]    0 in a row without a record
prior_value           [T]       the plan's value
task                  text      name of the task
action_repeat         number    environment steps of a decision
history               number    observations in a row, as ``env.history``
====================  ========  ==================================================================

An episode ends where ``terminals`` or ``timeouts`` say so, where the next observation is not the
following row's, and at the end of the file. Files never run code: pickled objects are refused.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pomcp_jax import files, nearest
from pomcp_jax.errors import ConfigError

REQUIRED = ("observations", "actions", "rewards")
OPTIONAL = (
    "terminals", "timeouts", "next_observations", "low", "high", "prior_mean", "prior_std",
    "prior_value", "task", "action_repeat", "history",
)  # fmt: skip
SAME = {"terminations": "terminals", "truncations": "timeouts"}
"""Names of Gymnasium and Minari, and those of D4RL."""
SLACK = 1e-3
"""Largest distance of an action from [-1, 1] that counts as rounding."""


class Rows(NamedTuple):
    """Episodes one after another, as replay stores them.

    Every episode ends with a row for its final observation, ``last``, whose other fields have no
    meaning. Leading axes ``[R]``, or ``[R, N]`` for N environments.
    """

    obs: Float[np.ndarray, "*rows O"]
    action: Float[np.ndarray, "*rows A"]
    reward: Float[np.ndarray, "*rows"]
    terminated: Bool[np.ndarray, "*rows"]
    last: Bool[np.ndarray, "*rows"]
    prior_mean: Float[np.ndarray, "*rows A"]
    prior_std: Float[np.ndarray, "*rows A"]
    """0 in rows without a planner record."""
    prior_value: Float[np.ndarray, "*rows"]

    @property
    def transitions(self) -> int:
        """Number of transitions."""
        return int(np.sum(~self.last))

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return int(np.sum(self.last))

    @property
    def recorded(self) -> Bool[np.ndarray, "*rows"]:
        """Whether a row has a planner record."""
        return np.all(self.prior_std > 0.0, axis=-1)


class Dataset(NamedTuple):
    """Contents of a file."""

    rows: Rows
    task: str
    """Empty if the file does not say."""
    action_repeat: int
    """0 if the file does not say."""
    history: int
    ignored: tuple[str, ...]
    """Names of arrays that are not read."""


class _File(NamedTuple):
    """Arrays of a file, and how messages name it."""

    name: str
    arrays: Mapping[str, np.ndarray]

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.name}: {text}")


def read(path: Path | str, name: str = "file", most_bytes: float = np.inf) -> Dataset:
    """Read and check a file.

    Args:
      path: of the file; ``~`` is expanded.
      name: what names the file in messages, a field or a flag.
      most_bytes: largest size of its arrays.

    Raises:
      ConfigError: one line with what is wrong and what would be right.
    """
    label = f"{name} = {str(path)!r:.300}"
    arrays, ignored = _load(Path(path).expanduser(), label, most_bytes)
    file = _File(label, arrays)
    known = {*REQUIRED, *OPTIONAL}
    if missing := [field for field in REQUIRED if field not in arrays]:
        here = ", ".join([*arrays, *ignored]) or "nothing"
        raise file.error(
            f"holds no {missing[0]} (but {here:.200}); must hold {', '.join(REQUIRED)}"
        )
    for field in ignored:
        # A misspelt name would silently be a file without that field.
        if match := nearest.find(field, known | {*SAME}):
            raise file.error(f"{field:.60}: unknown array; did you mean {match}?")
    return Dataset(
        _rows(file),
        _text(file, "task"),
        _number(file, "action_repeat", 0),
        _number(file, "history", 1),
        ignored,
    )


def _load(
    path: Path, label: str, most_bytes: float
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Known arrays of a file by D4RL's names, and the names of all others."""
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ConfigError(f"{label}: is no .npz file; must be one that numpy.savez writes")
        with zipfile.ZipFile(path) as archive:
            # Before anything is read: a small file may hold terabytes of zeros.
            size = sum(entry.file_size for entry in archive.infolist())
        if size > most_bytes:
            raise ConfigError(
                f"{label}: holds {size / 1e9:.3g} GB of arrays; must be <="
                f" train.memory_limit_gb = {most_bytes / 1e9:g}"
            )
        with np.load(path) as stored:
            names = {name: SAME.get(name, name) for name in stored.files}
            known = {n: own for n, own in names.items() if own in (*REQUIRED, *OPTIONAL)}
            if twice := [n for n in known if n in SAME and SAME[n] in stored.files]:
                raise ConfigError(f"{label}: holds {twice[0]} and {SAME[twice[0]]}; must hold one")
            arrays = {own: _array(stored, name, label) for name, own in known.items()}
            return arrays, tuple(name for name in names if name not in known)
    except ConfigError:  # is a ValueError too
        raise
    except OSError as error:
        raise ConfigError(f"{label}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{label}: is damaged ({text:.100}); copy or write it again") from None


def _array(stored: Any, name: str, label: str) -> np.ndarray:
    try:
        array = stored[name]
        # A member that is no array comes back as its bytes.
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
        return array
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ConfigError(
            f"{label}: {name} holds Python objects, which are not read (they can run code); must"
            " be an array of numbers"
        ) from None


def _shown(x: np.ndarray) -> str:
    return f"[{', '.join(map(str, x.shape))}]"


def _text(file: _File, field: str) -> str:
    value = file.arrays.get(field)
    return "" if value is None else str(value)[:200]


def _number(file: _File, field: str, default: int) -> int:
    value = file.arrays.get(field)
    if value is None:
        return default
    if value.shape != () or value.dtype.kind not in "iu" or not 1 <= value < 2**31:
        raise file.error(f"{field} = {str(value):.40}: must be a whole number >= 1")
    return int(value)


def _floats(file: _File, field: str, axes: int) -> np.ndarray:
    """An array as finite float32 with ``axes`` axes.

    Raises:
      ConfigError: it is of another type or shape, or not finite.
    """
    x = file.arrays[field]
    if x.dtype.kind not in "fiu":
        raise file.error(f"{field} holds {x.dtype}; must be an array of numbers")
    if axes == 1 and x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]  # a column, as Stable-Baselines3 has its rewards
    wanted = {1: "[T]", 2: "[T, size]"}[axes]
    if x.ndim != axes or 0 in x.shape[1:]:
        raise file.error(f"{field} has shape {_shown(x)}; must be {wanted}")
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    if not np.isfinite(single).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(single))[0])
        count = int(np.sum(~np.isfinite(single)))
        more = f" (one of {count:,})" if count > 1 else ""
        where = ", ".join(map(str, place))
        raise file.error(f"{field}[{where}] = {x[place]}{more}: must be finite in float32")
    return single


def _flags(file: _File, field: str, number: int) -> np.ndarray:
    """An array of booleans, all False if the file has none."""
    x = file.arrays.get(field)
    if x is None:
        return np.zeros(number, bool)
    x = x[:, 0] if x.ndim == 2 and x.shape[1] == 1 else x
    _check_length(file, field, x, number)
    if x.ndim != 1 or x.dtype.kind not in "biuf" or not np.isin(x, (0, 1)).all():
        raise file.error(f"{field} must be [T] of booleans, or of 0 and 1")
    return x.astype(bool)


def _check_length(file: _File, field: str, x: np.ndarray, number: int) -> None:
    if x.ndim == 0 or len(x) != number:
        rows = "no" if x.ndim == 0 else f"{len(x):,}"
        raise file.error(
            f"{field} has {rows} rows, actions {number:,}; must be one for each transition"
        )


def _actions(file: _File) -> np.ndarray:
    """Actions in [-1, 1].

    Raises:
      ConfigError: they are outside of their range, or the range is none.
    """
    actions = _floats(file, "actions", 2)
    bounds = [field for field in ("low", "high") if field in file.arrays]
    if len(bounds) == 1:
        raise file.error(f"holds {bounds[0]} alone; must hold low and high, or neither")
    if bounds:
        low, high = (_floats(file, field, 1) for field in bounds)
        if low.shape != actions.shape[1:] or high.shape != low.shape or not (low < high).all():
            raise file.error(
                f"low {_shown(low)} and high {_shown(high)} must be [{actions.shape[1]}] each, the"
                " first below the second"
            )
        # In float64, where bounds of 1e4 and actions of 1 keep their digits.
        low, high = low.astype(np.float64), high.astype(np.float64)
        actions = (2.0 * (actions - low) / (high - low) - 1.0).astype(np.float32)
    beyond = np.abs(actions) > 1.0 + SLACK
    if beyond.any():
        place = tuple(int(i) for i in np.argwhere(beyond)[0])
        hint = "low and high" if bounds else "[-1, 1], or the file hold their bounds low and high"
        value = file.arrays["actions"][place]
        raise file.error(
            f"actions[{place[0]}, {place[1]}] = {value:g}, and {int(beyond.sum()):,} in all, lie"
            f" outside; must be within {hint}"
        )
    return np.clip(actions, -1.0, 1.0)


def _rows(file: _File) -> Rows:
    """All transitions as rows of replay."""
    actions = _actions(file)
    number = len(actions)
    if number == 0:
        raise file.error("holds no transitions; must hold at least one")
    rewards = _floats(file, "rewards", 1)
    _check_length(file, "rewards", rewards, number)
    obs = _floats(file, "observations", 2)
    terminals, timeouts = (_flags(file, field, number) for field in ("terminals", "timeouts"))
    ends = terminals | timeouts
    ends[-1] = True
    mean, std, value = _records(file, actions)
    fields = {
        "action": actions,
        "reward": rewards,
        "terminated": terminals,
        "prior_mean": mean,
        "prior_std": std,
        "prior_value": value,
    }
    if "next_observations" in file.arrays:
        following = _floats(file, "next_observations", 2)
        _check_length(file, "observations", obs, number)
        if following.shape != obs.shape:
            raise file.error(
                f"next_observations has shape {_shown(following)}; must be {_shown(obs)}"
            )
        # Logs without marks, and shuffled ones: what does not follow is another episode's.
        ends[:-1] |= np.any(following[:-1] != obs[1:], axis=1)
        return _spread(fields, obs, ends, following[ends])
    if len(obs) == number + int(ends.sum()):
        final = np.flatnonzero(ends) + 1 + np.arange(int(ends.sum()))
        return _spread(fields, np.delete(obs, final, axis=0), ends, obs[final])
    return _without_final_observations(file, fields, obs, ends)


def _records(file: _File, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Planner records; a std of 0 where there is none."""
    number = len(actions)
    given = [x for x in ("prior_mean", "prior_std") if x in file.arrays]
    if not given:
        return actions, np.zeros_like(actions), np.zeros(number, np.float32)
    if len(given) == 1:
        raise file.error(f"holds {given[0]} alone; must hold prior_mean and prior_std, or neither")
    mean, std = (_floats(file, field, 2) for field in given)
    for field, x in zip(given, (mean, std), strict=True):
        if x.shape != actions.shape:
            raise file.error(
                f"{field} has shape {_shown(x)}; must be {_shown(actions)}, as actions"
            )
    if (std < 0.0).any():
        raise file.error("prior_std has negative entries; must be > 0, or 0 without a record")
    if "prior_value" not in file.arrays:
        return mean, std, np.zeros(number, np.float32)
    value = _floats(file, "prior_value", 1)
    _check_length(file, "prior_value", value, number)
    return mean, std, value


def _spread(
    fields: Mapping[str, np.ndarray], obs: np.ndarray, ends: np.ndarray, final: np.ndarray
) -> Rows:
    """Rows of transitions, with a row for each episode's final observation.

    Args:
      fields: of the rows, ``[T]`` each.
      obs: ``[T, O]`` before each action.
      ends: ``[T]``, whether a transition is the last of its episode.
      final: ``[episodes, O]``.
    """
    number, episodes = len(ends), len(final)
    place = np.arange(number) + np.cumsum(ends) - ends
    last = np.zeros(number + episodes, bool)
    last[place[ends] + 1] = True

    def spread(x: np.ndarray) -> np.ndarray:
        out = np.zeros((number + episodes, *x.shape[1:]), x.dtype)
        out[place] = x
        return out

    rows = spread(obs)
    rows[last] = final
    return Rows(obs=rows, last=last, **{name: spread(x) for name, x in fields.items()})


def _without_final_observations(
    file: _File, fields: Mapping[str, np.ndarray], obs: np.ndarray, ends: np.ndarray
) -> Rows:
    """Rows of a file that does not hold the final observations of its episodes.

    The last transition of every episode is lost: its observation is the final one that is known.

    Raises:
      ConfigError: that would lose terminations, or nothing says where episodes end.
    """
    number, episodes = len(ends), int(ends.sum())
    if len(obs) != number:
        raise file.error(
            f"observations has {len(obs):,} rows, actions {number:,}; must be as many, or"
            f" {number + episodes:,} with the final observations of all {episodes:,} episodes"
        )
    if not {"terminals", "timeouts"} & {*file.arrays}:
        raise file.error(
            "nothing says where episodes end; must hold next_observations, or terminals and"
            " timeouts"
        )
    if fields["terminated"].any():
        raise file.error(
            f"holds no next_observations, but {int(fields['terminated'].sum()):,} terminals; must"
            " hold the observations after them"
        )
    if number == episodes:
        raise file.error("holds no next_observations, and every episode has one row; must have two")
    return Rows(obs=obs, last=ends, **fields)


# ------------------------------------------------------------------------- writing


def write(
    path: Path, rows: Rows, *, task: str = "", action_repeat: int = 0, history: int = 1
) -> int:
    """Replace a file in one step; returns its bytes.

    Args:
      path: of the file.
      rows: from :func:`of_ring` or :func:`of_episodes`.
      task: name of the task; empty if unknown.
      action_repeat: environment steps of a decision; 0 if unknown.
      history: observations in a row.

    Raises:
      OSError: nothing was changed.
    """
    at = np.flatnonzero(~rows.last)
    arrays: dict[str, Any] = {
        "observations": rows.obs[at],
        "actions": rows.action[at],
        "rewards": rows.reward[at],
        "terminals": rows.terminated[at],
        "timeouts": rows.last[at + 1] & ~rows.terminated[at],
        "next_observations": rows.obs[at + 1],
        "history": np.int64(history),
    }
    if rows.recorded[at].any():
        arrays |= {
            "prior_mean": rows.prior_mean[at],
            "prior_std": rows.prior_std[at],
            "prior_value": rows.prior_value[at],
        }
    arrays |= {"task": np.array(task)} if task else {}
    arrays |= {"action_repeat": np.int64(action_repeat)} if action_repeat else {}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    data = out.getvalue()
    files.write_bytes(path, data)
    return len(data)


def of_ring(rows: Rows, inserted: int) -> Rows:
    """Episodes in the ring of one seed, environment by environment.

    Args:
      rows: leading axes ``[C, N]``.
      inserted: rows inserted since the start.
    """
    capacity = len(rows.last)
    order = np.arange(max(0, inserted - capacity), inserted) % capacity
    columns = []
    for env in range(rows.last.shape[1]):
        column = Rows(*(np.asarray(x)[order, env] for x in rows))
        # What follows the newest row is unknown: its episode is cut there.
        column.last[-1:] = True
        columns.append(column)
    return joined(columns)


def joined(parts: list[Rows]) -> Rows:
    """All episodes of several parts that have at least one transition."""

    def useful(rows: Rows) -> Rows:
        before = np.concatenate([[True], rows.last[:-1]])
        return Rows(*(x[~(rows.last & before)] for x in rows))

    return Rows(*(np.concatenate(x) for x in zip(*map(useful, parts), strict=True)))


# ------------------------------------------------------------------------- layouts


def with_history(rows: Rows, history: int) -> Rows:
    """``rows`` whose observations are the latest ``history`` of their episode, the oldest first.

    Before an episode's start its first observation is repeated, as :mod:`pomcp_jax.envs.history`
    does.
    """
    number = np.arange(len(rows.last))
    starts = np.concatenate([[0], np.flatnonzero(rows.last) + 1])
    first = starts[np.cumsum(rows.last) - rows.last]
    lags = range(history - 1, -1, -1)
    obs = np.concatenate([rows.obs[np.maximum(number - lag, first)] for lag in lags], axis=1)
    return rows._replace(obs=obs)


def columns(rows: Rows, num_envs: int) -> Rows:
    """``rows`` as equally long columns of N environments, ``[K, N]``.

    Where an episode is cut, both columns have the observation of the cut, so that no transition
    is lost. Every column ends with a ``last`` row; the final ones are filled up with such rows.
    """
    number = len(rows.last)
    height = -(-(number - 1) // num_envs)
    index = height * np.arange(num_envs)[None] + np.arange(height + 1)[:, None]
    beyond = index >= number
    # At a cut a transition starts in the later column only.
    cut = np.arange(height + 1)[:, None] == height
    out = Rows(*(x[np.minimum(index, number - 1)] for x in rows))
    return out._replace(last=out.last | beyond | cut)
