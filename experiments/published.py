"""Published learning curves that come with the repository, for pictures and tables."""

from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "published"
"""One file for each source; see its README."""
BANDS = ("tdmpc2",)
"""Sources whose seeds are known one by one, so that their spread can be drawn."""
