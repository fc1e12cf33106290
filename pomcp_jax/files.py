"""Files that are never half-written."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: it holds the old text or the new one, whatever happens.

    Raises:
      OSError: nothing was changed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
