"""Figures without a display, leaving matplotlib's global state and the user's backend unchanged."""

import importlib.util
from pathlib import Path
from typing import Any

FORMATS = ("png", "pdf", "svg")
"""Supported suffixes of a picture's name; the last two are vector graphics."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(width: float, height: float) -> Any:
    """Empty ``matplotlib.figure.Figure``; width and height are in inches.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    # Not pyplot: it would choose a backend for the whole process and keep every figure alive.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_format(out: Path) -> str:
    """Format of a picture by the suffix of its name.

    Raises:
      ValueError: for a suffix that is not in :data:`FORMATS`.
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"{out}: must end in one of {endings}")
    return kind


def save(drawn: Any, out: Path, dpi: float = 120) -> None:
    """Write a picture in one step, in the format of its suffix; ``dpi`` is that of a png.

    Raises:
      ValueError: as :func:`check_format`.
      OSError: the file cannot be written; an earlier one is kept.
    """
    kind = check_format(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only.
    partial = out.with_name(f".{out.name}.partial")
    import matplotlib

    try:
        # Type 42: journals refuse Type 3 fonts, and text stays text.
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            drawn.savefig(partial, dpi=dpi, format=kind)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
