"""Names that were nearly meant; imports nothing of the package."""

import difflib
import re
from collections.abc import Iterable

CLOSE = 0.65
"""Least similarity (``difflib``) of a name that is offered; below it a guess helps nobody."""

LONGEST = 100
"""Characters of a name that is compared at all: the time goes with their square."""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def find(name: object, names: Iterable[str]) -> str:
    """The one of ``names`` that is nearest to ``name``, or "" where none is near.

    Behind the last dot or slash names must be alike on their own: ``policy.nonsense`` is not
    near ``policy.entropy``, however much of a path they share. ``kl_coef`` is near
    ``agent.policy.kl_coef``.
    """
    wanted = _plain(str(name))
    if not 0 < len(wanted) <= LONGEST:
        return ""
    alike = []
    for known in names:
        plain = _plain(known)
        last = _likeness(_last(wanted), _last(plain))
        if _last(plain).startswith(f"{_last(wanted)}_"):  # a domain for one of its tasks
            last = max(last, 0.9)
        if last >= CLOSE:
            alike.append((last, _likeness(wanted, plain), known))
    return max(alike, key=lambda found: found[:2])[2] if alike else ""


def hint(name: object, names: Iterable[str], form: str = "{}") -> str:
    """``"; did you mean NAME?"``, or "" where none of ``names`` is near.

    Args:
      name: what was written.
      names: what could have been meant.
      form: how the name is written where it belongs, for example ``--{}``.
    """
    found = find(name, names)
    return f"; did you mean {form.format(found)}?" if found else ""
