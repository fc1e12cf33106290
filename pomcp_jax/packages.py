"""Installed packages."""

import importlib.metadata


def installed(name: str) -> str:
    """A package's version; ``unknown`` if it is on the path but not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
