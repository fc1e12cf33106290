"""Published learning curves in the repository, for figures and tables."""

from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "published"
"""Folder with one file per source; see its README."""
BANDS = ("tdmpc2",)
"""Sources that published every seed, so that a spread can be drawn."""
