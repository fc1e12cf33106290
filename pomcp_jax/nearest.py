"""The nearest known name to a misspelt one; imports nothing of the package."""

import difflib
import re
from collections.abc import Iterable

CLOSE = 0.65
"""Smallest similarity (``difflib``) of a suggested name; worse guesses do not help."""

LONGEST = 100
"""Longest name that is compared: the time grows with the square of its length."""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _likeness(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def find(name: object, names: Iterable[str]) -> str:
    """The nearest of ``names`` to ``name``, or "" if none is near.

    The parts after the last dot or slash must be alike on their own: ``policy.nonsense`` is not
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
        if _last(plain).startswith(f"{_last(wanted)}_"):  # a domain instead of a task
            last = max(last, 0.9)
        if last >= CLOSE:
            alike.append((last, _likeness(wanted, plain), known))
    # First by the last part, which is what people misspell; the whole path breaks ties.
    return max(alike, key=lambda match: match[:2])[2] if alike else ""


def hint(name: object, names: Iterable[str], form: str = "{}") -> str:
    """``"; did you mean NAME?"``, or "" if none of ``names`` is near.

    Args:
      name: the unknown name.
      names: the known ones.
      form: format of the suggestion, for example ``--{}``.
    """
    match = find(name, names)
    return f"; did you mean {form.format(match)}?" if match else ""
