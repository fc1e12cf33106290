"""Convert values of configuration fields to plain Python values; imports nothing of the package.

Numbers of numpy, JAX, ``fractions`` or an enumeration become plain Python numbers; a traced
field may hold an array of them instead, one for each row of a sweep, or a tracer.
"""

import math
import numbers
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FIELD_KINDS = (bool, int, float, str)


def shown(value: Any) -> str:
    """``value`` for an error message, on one line."""
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.aval.str_short()}"
    if np.ndim(value) and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def scalar(value: Any) -> Any:
    """``value`` as a plain Python value if it has one, otherwise unchanged."""
    if type(value) in FIELD_KINDS or isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        # Arrays of a sweep and PRNG keys have no single Python value.
        if np.ndim(value) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return value
        value = np.asarray(value)[()]
        if isinstance(value, np.float16 | np.float32) and np.isfinite(value):
            return float(rational(value))  # 0.1, not its float32 digits; rounds to the same
        # ``item`` of a longdouble returns a longdouble, not a Python float.
        value = float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str.__str__(value) if isinstance(value, str) else value


def rational(value: Any) -> Fraction:
    """The simplest fraction that rounds to a number.

    0.333 is 333/1000, and the float nearest to a third is 1/3, in the precision of
    ``value``.
    """
    if isinstance(value, numbers.Rational):
        return Fraction(int(value.numerator), int(value.denominator))
    value = np.asarray(value)[()]
    kind = value.dtype.type
    exact = Fraction(float(value))
    # Neighbours in the precision of ``value``: all numbers between the midpoints round to it.
    gaps = [Fraction(float(np.nextafter(value, kind(end)))) for end in (-np.inf, np.inf)]
    low, high = ((exact + gap) / 2 for gap in gaps)
    return exact if exact == 0 else _simplest(low, high)


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of the smallest denominator in ``[low, high]``, by continued fractions."""
    if low < 0:
        return -_simplest(-high, -low) if high < 0 else Fraction(0)
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = whole - 1
    return floor + 1 / _simplest(1 / (high - floor), 1 / (low - floor))


def traced(value: Any) -> Any:
    """``value`` for a traced float: a Python float, or an array or tracer of JAX's default float.

    Raises:
      TypeError: with what it must be.
    """
    is_array = isinstance(value, np.ndarray | jax.Array | jax.core.Tracer)
    if not is_array or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return plain(float, value)
    if not (jnp.issubdtype(value.dtype, np.floating) or jnp.issubdtype(value.dtype, np.integer)):
        raise TypeError("must be a number or an array of numbers")
    # float32, or float64 under x64; anything else would compile another program.
    wanted = jnp.zeros(()).dtype
    if isinstance(value, np.ndarray) or value.dtype != wanted:
        value = jnp.asarray(value, wanted)
    return value


def plain(kind: type, value: Any) -> Any:
    """``value`` as a ``kind``; whole floats pass for integers and integers for floats.

    Raises:
      TypeError: with what it must be.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"must be a plain {kind.__name__}: it is part of the compiled program")
    # ``float`` of a larger integer raises OverflowError.
    if kind is float and type(value) is int:
        if abs(value) > 2**1023:
            raise TypeError("must be finite")
        value = float(value)
    if kind is int and type(value) is float and math.isfinite(value) and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        got = "an array" if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"must be {kind.__name__}, not {got}")
    return value


def taken(kind: type, is_traced: bool, value: Any) -> Any:
    """``value`` converted to the type that a field of that kind stores.

    Args:
      kind: ``bool``, ``int``, ``float`` or ``str``.
      is_traced: whether the field is a leaf of the configuration's pytree.
      value: anything.

    Raises:
      TypeError: with what it must be.
    """
    value = scalar(value)
    return traced(value) if is_traced else plain(kind, value)
