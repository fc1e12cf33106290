"""Colours and dashes of a report's methods as CSS, for light and dark pages."""

from collections.abc import Sequence

from pomcp_jax.reporting import palette

DARK = {
    "#0072B2": "#56A8DE", "#D55E00": "#F2854A", "#009E73": "#34BF96", "#CC79A7": "#E0A0C4",
    "#E69F00": "#F0B840", "#56B4E9": "#8CCBF2", "#000000": "#D8D8D4",
}  # fmt: skip
"""Colours of methods on a dark page, where black would be invisible."""
RAMP = ("#3B6FB6", "#2A9D8F", "#8AB17D", "#E0A93B", "#E07A3F", "#C8435C")
"""Colours of a sweep's cells in the order of its values."""


def methods(labels: Sequence[str], known: Sequence[str], ordered: Sequence[str]) -> str:
    """CSS of every method: its colour on light and dark pages, its dashes.

    Args:
      labels: of all methods, in the order of the page.
      known: methods that have the same colour in every picture; see :func:`palette.places`.
      ordered: methods with colours in their order, as the cells of a sweep.
    """
    place = palette.places(labels, known)
    light, dark = [], []
    for i, label in enumerate(labels):
        style = palette.style(place[label])
        color, dashes = style["color"], style["linestyle"]
        if label in ordered:
            color, dashes = _ramp(ordered.index(label) / (len(ordered) - 1)), "-"
        steps = () if dashes == "-" else dashes[1]
        dashed = " ".join(f"{2 * step:g}" for step in steps) or "none"
        light.append(f".m{i}{{--c:{color};--d:{dashed}}}{_dashed_chip(i, steps)}")
        dark.append(f".m{i}{{--c:{DARK.get(color, color)}}}")
    return f"{''.join(light)}@media(prefers-color-scheme:dark){{{''.join(dark)}}}"


def _dashed_chip(method: int, steps: Sequence[float]) -> str:
    """CSS of a method's mark in legend and tables: a dashed line, or the usual dot."""
    if not steps:
        return ""
    ends = [2 * sum(steps[:i]) for i in range(len(steps) + 1)]
    colors = ["var(--c)", "transparent"] * len(steps)
    stops = ",".join(
        f"{color} {a:g}px {b:g}px"
        for color, a, b in zip(colors[: len(steps)], ends[:-1], ends[1:], strict=True)
    )
    return (
        f".chip.m{method}::before{{width:1.5em;height:.22em;border-radius:0;vertical-align:.2em;"
        f"background:repeating-linear-gradient(90deg,{stops})}}"
    )


def _ramp(share: float) -> str:
    """Colour at a share of :data:`RAMP`."""
    at = share * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    pairs = zip(*(bytes.fromhex(color[1:]) for color in RAMP[i : i + 2]), strict=True)
    return "#" + "".join(f"{round(a + (at - i) * (b - a)):02x}" for a, b in pairs)
