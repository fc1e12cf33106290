"""Colours and line styles of methods, the same in every panel and every picture."""

from collections.abc import Iterable, Sequence
from typing import Any

FIRST = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without yellow, distinct to colour-blind readers too."""
MORE = (
    "#8c564b", "#7f7f7f", "#bcbd22", "#9467bd",
    "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7",
)  # fmt: skip
"""Of further methods where line styles have another meaning: colours of matplotlib's tab20."""
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""Line styles; a method has one of seven colours and of four styles."""


def places(methods: Iterable[str], known: Sequence[str] = ()) -> dict[str, int]:
    """Place of each method among the colours.

    Methods of ``known`` have the place that they have there, whatever else is drawn; the others
    get the first ones that are left.
    """
    names = list(dict.fromkeys(methods))
    out = {name: known.index(name) for name in names if name in known}
    left = (i for i in range(len(names) + len(known)) if i not in out.values())
    return {name: out[name] if name in out else next(left) for name in names}


def color(place: int) -> str:
    """One of 19 colours; equal to that of :func:`style` for the first seven."""
    every = (*FIRST, *MORE)
    return every[place % len(every)]


def style(place: int) -> dict[str, Any]:
    """Colour and line style; 28 are distinct."""
    dashes = DASHES[place // len(FIRST) % len(DASHES)]
    return {"color": FIRST[place % len(FIRST)], "linestyle": dashes}
