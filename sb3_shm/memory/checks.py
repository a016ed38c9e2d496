"""Checks of numbers that users pass."""

from numbers import Integral, Real
from typing import Any

import numpy as np

_GREATEST = float(np.finfo(np.float32).max)  # all that is computed is float32


def check_in_range(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    integer: bool = False,
) -> None:
    """
    :param name: name of the argument
    :param value: its value
    :param low: smallest legal value
    :param high: greatest legal value
    :param above: the value must be greater than this
    :param integer: the value must be a whole number
    :raises ValueError: the value is outside, not finite in float32 or no number
    """
    number: Any = value
    legal = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    legal += [f"above {above}"] * (above is not None)
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral if integer else Real)
        or not abs(number) <= _GREATEST
        or (low is not None and number < low)
        or (high is not None and number > high)
        or (above is not None and number <= above)
    ):
        kind = "an integer" if integer else "a finite number"
        raise ValueError(f"{name} must be {kind}{', ' * bool(legal)}{' and '.join(legal)}; got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """
    :param name: name of the argument
    :param value: its value
    :raises ValueError: neither True nor False
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
