"""Public names of the package, which the reference must describe; does not need Sphinx."""

import importlib
import inspect
import types
from typing import Any

import pomcp_jax

FURTHER = (
    "actors",
    "exporting",
    "model_loss",
    "policy_loss",
    "rendering.film",
    "reporting.aggregates",
    "running.background",
    "running.progress",
    "running.trainer",
    "types",
)
"""Modules that users import and ``pomcp_jax.__all__`` does not list."""


def modules() -> list[str]:
    """Dotted names of the modules of the reference."""
    listed = [n for n in pomcp_jax.__all__ if isinstance(getattr(pomcp_jax, n), types.ModuleType)]
    return [f"pomcp_jax.{name}" for name in (*listed, *FURTHER)]


def names() -> list[tuple[set[str], Any]]:
    """Every public class and function with its dotted names, one of which the reference has."""
    found: dict[int, tuple[set[str], Any]] = {}
    for module_name in ("pomcp_jax", *modules()):
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            if name.startswith("_") or not hasattr(value, "__qualname__"):
                continue
            if hasattr(module, "__all__") or value.__module__ == module_name:
                aliases = found.setdefault(id(value), (set(), value))[0]
                aliases |= {f"{module_name}.{name}", f"{value.__module__}.{value.__qualname__}"}
    return list(found.values())


def described(value: Any) -> bool:
    """Whether an object has a docstring of its own, not one that Python made up."""
    text = inspect.getdoc(value) or ""
    # That of a NamedTuple or dataclass without a docstring is its signature.
    return bool(text) and not text.startswith(f"{value.__name__}(")
