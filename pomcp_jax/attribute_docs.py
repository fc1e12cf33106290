"""Docstrings of a module's classes and of their fields, read from its source.

Python drops the string below a field; the syntax tree still has it. Imports nothing but the
standard library, so that a command can describe the configuration before JAX is loaded.
"""

import ast
import functools
import inspect
import re
import sys
from typing import NamedTuple


class ClassDocs(NamedTuple):
    """Documentation in the source of a class."""

    doc: str
    fields: dict[str, str]
    """Documentation of every annotated field, "" if it has none."""
    types: dict[str, str]
    """Annotations as written."""


def read(source: str) -> dict[str, ClassDocs]:
    """The top-level classes of a module's source by name."""
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {node.name: _read_class(node) for node in nodes}


def _read_class(node: ast.ClassDef) -> ClassDocs:
    fields, types = {}, {}
    for here, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        text = ""
        # A string counts only directly below its field, as in documentation tools.
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = inspect.cleandoc(str(below.value.value))
        fields[here.target.id] = text
        types[here.target.id] = ast.unparse(here.annotation)
    return ClassDocs(ast.get_docstring(node) or "", fields, types)


@functools.cache
def _of_module(name: str) -> dict[str, ClassDocs]:
    try:
        return read(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):  # no source: an interactive session, a frozen program
        return {}


def of_class(cls: type) -> ClassDocs:
    """Docstrings of ``cls``; empty if its source is not available."""
    return _of_module(cls.__module__).get(cls.__name__, ClassDocs("", {}, {}))


def first_line(doc: str | None) -> str:
    """The first line of a docstring, in Markdown."""
    return markdown(doc or "").partition("\n")[0]


def markdown(doc: str) -> str:
    """A docstring whose literals and references are between single backticks."""
    return re.sub(r":\w+:`|``", "`", doc)
