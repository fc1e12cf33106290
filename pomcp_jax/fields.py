"""Type, range, default and documentation of configuration fields, read from their declarations.

A field is declared once::

    rho: Annotated[float, Range(0.0, 1.0)] = 0.5
    \"\"\"Weight of step t of a window: ``rho ** t``.\"\"\"
    critic: Literal["q", "v"] = "q"
    \"\"\"...\"\"\"

Checks, command-line help and the documentation page all use this declaration.
"""

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from pomcp_jax import attribute_docs, nearest

STATIC = "static"
"""Marks a float that decides a shape or a structure: ``Annotated[float, STATIC]``."""
OPTIONAL = "optional"
"""Marks a traced float whose default switches something off. It is a leaf only with another value,
so that a program with the default does not contain what is switched off."""


class Range(NamedTuple):
    """An interval of numbers; open ends are not part of it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    bits: int = 31
    """Width of integers: 31 for counts on a device, 63 on the host."""

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"

    def holds(self, value: Any) -> bool:
        """Whether a number, or every number of an array, lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return bool(np.all(above & below))


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
HostCount = Annotated[int, Range(1, bits=63)]
HostCountOrZero = Annotated[int, Range(0, bits=63)]
NotNegative = Annotated[float, Range(0.0)]
Positive = Annotated[float, Range(0.0, low_open=True)]
Share = Annotated[float, Range(0.0, 1.0)]
Rate = Annotated[float, Range(0.0, 1.0, low_open=True)]
BelowOne = Annotated[float, Range(0.0, 1.0, high_open=True)]
Power = Annotated[float, Range(-10.0, 10.0)]
LogStd = Annotated[float, Range(-30.0, 10.0)]
"""Bounds for which ``exp(2 x)`` is a normal number of float32."""
Symlog = Annotated[float, Range(-80.0, 80.0)]
"""Bounds for which ``symexp`` is finite in float32."""
ActionBound = Annotated[float, Range(-1e6, 1e6), OPTIONAL]


class Spec(NamedTuple):
    """Specification of a field with a value; groups of fields have none."""

    kind: type
    """``bool``, ``int``, ``float`` or ``str``."""
    default: Any
    choices: tuple[str, ...] = ()
    range: Range | None = None
    static: bool = True
    """Whether the value is part of the compilation key; otherwise it is traced."""
    doc: str = ""
    optional: bool = False
    """Whether the default of a traced float switches something off, see :data:`OPTIONAL`."""

    @property
    def allowed(self) -> str:
        """Type with range, or choices: ``float in [0, 1]``, ``q | v``."""
        if self.choices:
            return " | ".join(self.choices)
        return self.kind.__name__ + (f" {self.range}" if self.range else "")


def _spec(annotation: Any, default: Any, doc: str) -> Spec:
    is_annotated = typing.get_origin(annotation) is Annotated
    kind, *marks = typing.get_args(annotation) if is_annotated else (annotation,)
    if typing.get_origin(kind) is Literal:
        return Spec(str, default, choices=typing.get_args(kind), doc=doc)
    ranges: list[Range] = [mark for mark in marks if isinstance(mark, Range)]
    # Integers and names decide shapes or branches, so only floats can be traced.
    static = kind is not float or STATIC in marks
    interval, optional = ranges[0] if ranges else None, OPTIONAL in marks
    return Spec(kind, default, range=interval, static=static, doc=doc, optional=optional)


def specs(cls: Any) -> dict[str, Spec]:
    """Specifications of a dataclass' own fields, without its groups."""
    return _specs(cls)


@functools.cache  # separate: type checkers consider classes unhashable
def _specs(cls: Any) -> dict[str, Spec]:
    docs = attribute_docs.of_class(cls).fields
    return {
        field.name: _spec(field.type, field.default, docs.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(field.type)
    }


def is_off(spec: Spec, value: Any) -> bool:
    """Whether an optional float has its default; arrays and tracers are on, whatever they hold."""
    # Integers are on too: JAX writes the axes of ``vmap`` into a configuration's leaves.
    return spec.optional and type(value) is float and value == spec.default


def is_on(config: Any, name: str) -> bool:
    """Whether the optional float ``name`` of a configuration is a leaf."""
    return not is_off(specs(type(config))[name], getattr(config, name))


def groups(cls: Any, path: str = "") -> dict[str, Any]:
    """The groups inside a configuration class that hold values, by dotted name."""
    out = {path: cls} if specs(cls) else {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            out |= groups(field.type, f"{path}.{field.name}" if path else field.name)
    return out


def all_specs(cls: Any, path: str = "") -> dict[str, Spec]:
    """Specifications of a configuration class and of its groups, by dotted name."""
    return {
        f"{group}.{name}" if group else name: spec
        for group, inner in groups(cls, path).items()
        for name, spec in specs(inner).items()
    }


def document(cls: Any) -> str:
    """The docstring of ``cls`` with a paragraph for every field."""
    lines = [cls.__doc__ or "", "", "Fields:"]
    for name, spec in specs(cls).items():
        text = spec.doc.replace("\n", "\n    ")
        lines += [f"  {name}: {spec.allowed}, default {spec.default!r}", f"    {text}"]
    return "\n".join(lines)


def _as_float32(value: Any) -> Any:
    """``value`` as a device stores it: float32, denormal numbers as zero."""
    with np.errstate(over="ignore", under="ignore"):
        value = np.asarray(value).astype(np.float32)
    # XLA flushes denormal numbers to zero: a positive rate of 1e-40 would be 0 on the device.
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.float32(0.0), value)


def refusal(spec: Spec, value: Any) -> str:
    """Requirement that ``value`` violates; "" if it is allowed, or a tracer.

    All numbers of an array are checked, floats as the float32 that a device stores.
    """
    if isinstance(value, jax.core.Tracer):
        return ""
    if spec.choices and value not in spec.choices:
        hint = nearest.hint(value, spec.choices, "{!r}")
        return f"must be one of {', '.join(spec.choices)}{hint}"
    if spec.range is None:
        return ""
    if spec.kind is int:
        # A Python integer has no width: too large a one would overflow when traced.
        if abs(value) >= 2**spec.range.bits:
            return f"must be < 2**{spec.range.bits}"
        return "" if spec.range.holds(value) else f"must be {spec.range}"
    # Compared as float32: 1 - 1e-9 is 1 on the device, outside of a range that excludes 1.
    number = _as_float32(value)
    if not np.isfinite(number).all():
        return "must be finite" + (" in float32" if np.isfinite(value).all() else "")
    return "" if spec.range.holds(number) else f"must be {spec.range}"
