"""Argument parsing: flags may contain dashes, and a mistake exits with a one-line error."""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pomcp_jax import nearest
from pomcp_jax.errors import ConfigError


def plain(doc: str | None) -> str:
    """A module's docstring for readers of ``--help``: without Sphinx's marks."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", doc or "")
    return text.replace("``", "`")


def underscored(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``_`` for ``-`` in the names of flags; values are unchanged."""
    out: list[str] = []
    for i, arg in enumerate(argv):
        if arg == "--":  # ends the flags by convention
            return out + list(argv[i:])
        name, equals, value = arg.partition("=")
        if arg.startswith("-"):
            bare = name.lstrip("-")
            name = name[: len(name) - len(bare)] + bare.replace("-", "_")
        out.append(name + equals + value)
    return out


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, others: bool = False
) -> tuple[argparse.Namespace, list[str]]:
    """Parsed arguments and, if ``others`` allows them, those that ``parser`` does not define.

    Exits with one line and code 2 for unknown or malformed arguments.
    """

    def error(message: str) -> NoReturn:
        parser.exit(2, f"error: {message}; see --help\n")

    # argparse would print its usage, several lines, in front of the line that matters.
    parser.error = error  # type: ignore[method-assign]
    args, unknown = parser.parse_known_args(underscored(sys.argv[1:] if argv is None else argv))
    if unknown and not others:
        name = unknown[0].partition("=")[0]
        known = re.findall(r"--(\w+)", parser.format_usage())
        hint = nearest.hint(name.lstrip("-"), known, "--{}")
        parser.exit(2, f"error: {name}: unknown argument{hint or '; see --help'}\n")
    return args, unknown


def setting(text: str) -> tuple[str, Any]:
    """Name and value of ``FIELD=VALUE``; a value that is no literal of Python is text.

    Raises:
      ConfigError: there is no name or no value.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r}: must be FIELD=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return name, value
