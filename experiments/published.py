"""Published learning curves in the repository, and colours of methods, for figures and tables."""

from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "published"
"""Folder with one file per source; see its README."""
BANDS = ("tdmpc2",)
"""Sources that published every seed, so that a spread can be drawn."""
COLORED = (
    "po_mpc", "tdmpc2", "bmpc", "po_mpc_calibrated", "boom", "po_mpc_gated", "po_mpc_relative",
    "tdmpc_square", "po_mpc_direct", "po_mpc_forward", "bmpc_v3", "boom_many_actions", "qbmpc",
    "gem_mpc",
)  # fmt: skip
"""Methods by their place among the colours; the first seven have a colour to themselves."""
