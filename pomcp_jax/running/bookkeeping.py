"""What a run knows besides its training state: plain JSON inside of a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.running.tables import TABLES, Written


class Pending(NamedTuple):
    """A chunk whose row is not written yet because its evaluation is not over."""

    phase: str
    values: dict[str, list[Any]]
    seconds: float
    decisions: int
    """Of this chunk, per seed."""
    stop: str = ""
    """Why the run ends after it; empty if it goes on."""


class Host(NamedTuple):
    """What a run knows besides its training state; plain JSON inside of a checkpoint."""

    finished: bool
    updates: int
    seconds: float
    """Wall-clock of all sittings."""
    last_evaluation: int
    """Decisions at the latest evaluation that was due, 0 before it."""
    last_checkpoint: int
    evaluated_at: int
    evaluated: dict[str, list[float | None]]
    returns: list[float | None]
    invalid: list[int]
    pending: Pending | None
    written: Written
    commit: str | None
    left: Sequence[tuple[int, int, str]] = ()
    """Seeds that are left behind: index, and :class:`pomcp_jax.running.health.Diverged`."""
    resets: Sequence[int] = ()
    """How often each seed's agent started anew; empty stands for never."""


def listed(values: np.ndarray) -> list[Any]:
    """JSON of an array: NaN as null, infinities, which JSON lacks, as ``"inf"``, ``"-inf"``."""
    plain = np.asarray(values).tolist()
    return [None if v != v else str(v) if v in (np.inf, -np.inf) else v for v in plain]


def array(values: list[Any]) -> np.ndarray:
    """Inverse of :func:`listed`: integers stay integers."""
    whole = all(type(value) is int for value in values)
    return np.array(values, np.int64 if whole else np.float64)


Check = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _natural(value: Any) -> bool:
    return _whole(value) and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _text(value: Any) -> bool:
    return type(value) is str


def _list(item: Check, length: int | None = None) -> Check:
    """Of a list whose items pass ``item``; of any length without ``length``."""
    return lambda value: (
        isinstance(value, list | tuple) and length in (None, len(value)) and all(map(item, value))
    )


def _dict(item: Check) -> Check:
    return lambda value: (
        isinstance(value, Mapping) and all(_text(name) and item(one) for name, one in value.items())
    )


def _value(value: Any) -> bool:
    """An entry of :func:`listed`."""
    return value is None or value in ("inf", "-inf") or type(value) is bool or _number(value)


def _left(num_seeds: int) -> Check:
    def one(value: Any) -> bool:
        if not (isinstance(value, list | tuple) and len(value) == 3):
            return False
        seed, decisions, term = value
        return _whole(seed) and 0 <= seed < num_seeds and _whole(decisions) and _text(term)

    return _list(one)


def _checked(name: str, values: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    for field, check in checks.items():
        if field in values and not check(values[field]):
            raise ValueError(f"{name}{field} = {values[field]!r:.100} is of another type or length")


def host_of(values: Mapping[str, Any], num_seeds: int) -> Host:
    """``values``, as read from JSON, as a :class:`Host`; every type and length is checked.

    Raises:
      ValueError, TypeError, KeyError: a field is missing, unknown, or of another kind.
    """
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
            "written": _list(lambda _: True),
            "commit": lambda value: value is None or _text(value),
            "left": _left(num_seeds),
            "resets": lambda value: _list(_whole)(value) and len(value) in (0, num_seeds),
        },
    )
    host = Host(**values)
    written = Written(*host.written)
    _checked(
        "written.",
        written._asdict(),
        {
            "columns": lambda value: _list(_text)(value) and {"decisions", "seed"} <= set(value),
            "evaluation_columns": _list(_text),
            "sizes": lambda value: _dict(_whole)(value) and all(v >= 0 for v in value.values()),
            "decisions": _whole,
            "digests": _dict(_text),
        },
    )
    for name in TABLES:
        written.sizes[name]  # KeyError: a table is missing
    pending = None if host.pending is None else Pending(*host.pending)
    if pending is not None:
        _checked(
            "pending.",
            pending._asdict(),
            {
                "phase": lambda value: value in ("seeding", "pretraining", "training"),
                "values": _dict(of_seeds),
                "seconds": _number,
                "decisions": _whole,
                "stop": _text,
            },
        )
    return host._replace(written=written, pending=pending)
