"""Books of a run: everything it knows besides its training state, as JSON in checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.running.health import Diverged
from pomcp_jax.running.metrics import Results
from pomcp_jax.running.tables import TABLES, Written


class Pending(NamedTuple):
    """A chunk whose rows are not written yet because its evaluation has not finished."""

    phase: str
    values: Results
    seconds: float
    decisions: int
    """Decisions of this chunk, per seed."""
    stop: str = ""
    """Reason for the run to end after this chunk; empty if it continues."""


class Books(NamedTuple):
    """State of a run besides its training state, as one value, so that saving forgets nothing.

    Arrays have one entry per seed, S.
    """

    commit: str | None
    """Commit of the source that trains."""
    returns: np.ndarray
    """``[S]``, mean of each seed's latest training episodes."""
    invalid: np.ndarray
    """``[S]``, number of non-finite environment steps so far."""
    resets: np.ndarray
    """``[S]``, how often each seed's agent was reset."""
    finished: bool = False
    updates: int = 0
    seconds: float = 0.0
    """Wall-clock time of all sittings; during a sitting, of the earlier ones."""
    last_evaluation: int = 0
    """Decisions at the latest scheduled evaluation, 0 before the first."""
    last_checkpoint: int = 0
    evaluated_at: int = -1
    evaluated: Results = {}
    """Results of the latest evaluation, ``[S]`` each."""
    pending: Pending | None = None
    tables: tuple[Written, ...] = ()
    """What has been written to each cell's tables; empty before the first row."""
    left: dict[int, Diverged] = {}
    """Dropped seeds, by index into the seed axis."""
    grid: dict[str, tuple[float, ...]] = {}
    """Swept fields and their values; empty in a plain run."""


def fresh(num_rows: int, commit: str | None, grid: Mapping[str, Sequence[float]] = {}) -> Books:
    """Books of a run that has not begun."""
    zeros = np.zeros(num_rows, np.int64)
    unknown = np.full(num_rows, np.nan)
    return Books(commit, unknown, zeros, zeros, grid={k: tuple(v) for k, v in grid.items()})


def keep_seeds(books: Books, num_seeds: int) -> Books:
    """Books of the first ``num_seeds`` seeds of a run."""
    return take_seeds(books, slice(0, num_seeds))


def take_seeds(books: Books, which: slice) -> Books:
    """Books of some seeds of a run, given by their indices."""

    def some(values: Results) -> Results:
        return {name: value[which] for name, value in values.items()}

    pending, first = books.pending, which.start
    return books._replace(
        evaluated=some(books.evaluated),
        returns=books.returns[which],
        invalid=books.invalid[which],
        pending=None if pending is None else pending._replace(values=some(pending.values)),
        left={i - first: what for i, what in books.left.items() if first <= i < which.stop},
        resets=books.resets[which],
    )


def join(books: Books, new: Books) -> Books:
    """``books`` with the seeds of ``new`` appended; both have done the same decisions."""
    missing = len(new.returns)

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(books, name), getattr(new, name)])

    def side_by_side(values: Results, others: Results) -> Results:
        unknown = np.full(missing, np.nan)
        return {k: np.concatenate([v, others.get(k, unknown)]) for k, v in values.items()}

    pending = books.pending
    # Both or neither are pending, since both have done the same decisions.
    if pending is not None and new.pending is not None:
        values = side_by_side(pending.values, new.pending.values)
        pending = pending._replace(values=values, stop=pending.stop or new.pending.stop)
    # An evaluation at other decisions is not comparable: those seeds count as not evaluated.
    latest = new.evaluated if new.evaluated_at == books.evaluated_at else {}
    shift = len(books.returns)
    return books._replace(
        returns=both("returns"),
        invalid=both("invalid"),
        resets=both("resets"),
        left=books.left | {shift + i: what for i, what in new.left.items()},
        evaluated=side_by_side(books.evaluated, latest),
        pending=pending,
    )


def to_json(books: Books) -> dict[str, Any]:
    """``books`` as JSON values; inverse of :func:`from_json`."""
    pending: tuple[Any, ...] | None = books.pending
    if books.pending is not None:
        phase, values, *rest = books.pending
        pending = phase, {name: listed(value) for name, value in values.items()}, *rest
    return books._asdict() | {
        "returns": listed(books.returns),
        "invalid": listed(books.invalid),
        "resets": listed(books.resets),
        "evaluated": {name: listed(value) for name, value in books.evaluated.items()},
        "pending": pending,
        "tables": list(books.tables),
        "left": [(i, *what) for i, what in books.left.items()],
    }


def listed(values: np.ndarray) -> list[Any]:
    """JSON values of an array: NaN as null, infinities as ``"inf"`` and ``"-inf"``."""
    # JSON has no NaN or infinity; Python would write tokens that other readers reject.
    plain = np.asarray(values).tolist()
    return [None if v != v else str(v) if v in (np.inf, -np.inf) else v for v in plain]


def array(values: list[Any]) -> np.ndarray:
    """Inverse of :func:`listed`; integers stay integers, so that counters resume exactly."""
    whole = all(type(value) is int for value in values)
    return np.array(values, np.int64 if whole else np.float64)


Check = Callable[[Any], bool]


# Exact types: isinstance would accept True as a number. Numbers must fit into int64 because
# NumPy raises OverflowError otherwise, which no caller expects.
def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _natural(value: Any) -> bool:
    return _whole(value) and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _text(value: Any) -> bool:
    return type(value) is str


def _list(item: Check, length: int | None = None) -> Check:
    """Check for a list whose items pass ``item``, of any length unless ``length`` is given."""
    return lambda value: (
        isinstance(value, list | tuple) and length in (None, len(value)) and all(map(item, value))
    )


def _dict(item: Check) -> Check:
    return lambda value: (
        isinstance(value, Mapping) and all(_text(name) and item(v) for name, v in value.items())
    )


def _value(value: Any) -> bool:
    """An entry of :func:`listed`."""
    return value is None or value in ("inf", "-inf") or type(value) is bool or _number(value)


def _left(num_seeds: int) -> Check:
    def entry(value: Any) -> bool:
        if not (isinstance(value, list | tuple) and len(value) == 3):
            return False
        seed, decisions, term = value
        return _whole(seed) and 0 <= seed < num_seeds and _whole(decisions) and _text(term)

    return _list(entry)


def _checked(name: str, values: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    for field, check in checks.items():
        if field in values and not check(values[field]):
            raise ValueError(f"{name}{field} = {values[field]!r:.100} is of another type or length")


def from_json(values: Mapping[str, Any], num_seeds: int) -> Books:
    """Books from the values of a checkpoint; every type and length is checked.

    Raises:
      ValueError, TypeError, KeyError: a field is missing, unknown, or of another type or length.
    """
    values = dict(values)
    # Checkpoints from before sweeps could resume have one table and no optional fields.
    if "written" in values:
        values["tables"] = [values.pop("written")]
    known, optional = set(Books._fields), {"left", "resets", "grid"}
    if values.keys() - known or known - optional - values.keys():
        raise ValueError(f"fields {sorted(values)!r:.100}: must be {', '.join(Books._fields)}")
    of_seeds = _list(_value, num_seeds)
    _checked(
        "",
        values,
        {
            "finished": lambda value: type(value) is bool,
            "seconds": _number,
            **dict.fromkeys(("updates", "last_evaluation", "last_checkpoint"), _natural),
            "evaluated_at": _whole,
            "evaluated": _dict(of_seeds),
            "returns": of_seeds,
            "invalid": _list(_whole, num_seeds),
            "pending": lambda value: value is None or _list(lambda _: True)(value),
            "tables": _list(_list(lambda _: True)),
            "commit": lambda value: value is None or _text(value),
            "left": _left(num_seeds),
            "resets": lambda value: _list(_whole)(value) and len(value) in (0, num_seeds),
            "grid": _dict(_list(_number)),
        },
    )
    pending = values["pending"]
    resets = values.get("resets") or [0] * num_seeds
    return Books(**values)._replace(
        returns=array(values["returns"]),
        invalid=array(values["invalid"]),
        resets=array(resets),
        evaluated={name: array(listed) for name, listed in values["evaluated"].items()},
        tables=tuple(_table(Written(*fields)) for fields in values["tables"]),
        pending=None if pending is None else _pending(Pending(*pending), of_seeds),
        left={i: Diverged(*what) for i, *what in values.get("left", ())},
        grid={name: tuple(listed) for name, listed in values.get("grid", {}).items()},
    )


def _table(written: Written) -> Written:
    checks = {
        "columns": lambda value: _list(_text)(value) and {"decisions", "seed"} <= set(value),
        "evaluation_columns": _list(_text),
        "sizes": lambda value: _dict(_whole)(value) and all(v >= 0 for v in value.values()),
        "decisions": _whole,
        "digests": _dict(_text),
    }
    _checked("tables.", written._asdict(), checks)
    for name in TABLES:
        written.sizes[name]  # KeyError: a table is missing
    return written


def _pending(pending: Pending, of_seeds: Check) -> Pending:
    checks = {
        "phase": lambda value: value in ("seeding", "pretraining", "training"),
        "values": _dict(of_seeds),
        "seconds": _number,
        "decisions": _whole,
        "stop": _text,
    }
    _checked("pending.", pending._asdict(), checks)
    listed_values: Mapping[str, Any] = pending.values
    return pending._replace(values={name: array(v) for name, v in listed_values.items()})
