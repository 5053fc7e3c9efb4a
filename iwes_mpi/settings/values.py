"""Values of settings: the ranges they must lie in, and what JSON, TOML and command lines write for them."""

import json
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from iwes_mpi.settings.wrong_input import WrongInput

MAX_SEED = 2**64 - 1
_TOO_MANY = "must be at most 2^53"
_DEEPEST = 50  # levels of lists and objects in a setting that is JSON
_LONGEST = 200  # characters of a value in an error message


# -- ranges: each returns what is wrong with a value, or None ------------------------------------------------


def positive(value: float) -> str | None:
    """0 < value < inf."""
    return None if 0 < value < math.inf else "must be positive and finite"


def finite(value: float) -> str | None:
    """−inf < value < inf."""
    return None if math.isfinite(value) else "must be finite"


def not_negative(value: float) -> str | None:
    """0 ≤ value < inf."""
    return None if 0 <= value < math.inf else "must be zero or more, and finite"


def at_least_one(value: int) -> str | None:
    """1 ≤ value ≤ 2^53."""
    return None if 1 <= value <= 2**53 else "must be at least 1" if value < 1 else _TOO_MANY


def share(value: float) -> str | None:
    """0 ≤ value ≤ 1."""
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def share_above_zero(value: float) -> str | None:
    """0 < value ≤ 1."""
    return None if 0 < value <= 1 else "must be above 0, and at most 1"


def below_one(value: float) -> str | None:
    """0 ≤ value < 1."""
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


def above_one(value: float) -> str | None:
    """1 < value < inf."""
    return None if 1 < value < math.inf else "must be above 1, and finite"


def positive_or_inf(value: float) -> str | None:
    """0 < value ≤ inf."""
    return None if value > 0 else "must be positive (inf for none)"


def count(value: int) -> str | None:
    """0 ≤ value ≤ 2^53."""
    return None if 0 <= value <= 2**53 else "must be zero or more" if value < 0 else _TOO_MANY


def pairs(value: int) -> str | None:
    """1 ≤ value ≤ 2^30, the most that the exact sums take."""
    return None if 1 <= value <= 2**30 else "must lie between 1 and 2^30"


def layers(value: tuple[int, ...]) -> str | None:
    """Each 1 ≤ units ≤ 65536."""
    return None if all(1 <= units <= 65536 for units in value) else "every layer needs 1 to 65536 units"


def seed(value: int) -> str | None:
    """0 ≤ value < 2^64."""
    return None if 0 <= value <= MAX_SEED else "must lie between 0 and 2^64 - 1"


def not_empty(value: str) -> str | None:
    """Printable text that is not blank."""
    return None if value.strip() and value.isprintable() else "must be text without control characters, not empty"


# -- forms ---------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value that JSON can hold: ``inf`` becomes the string "inf", a tuple a list."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def for_toml(value: Any) -> Any:
    """A value for a flat TOML file: JSON text for a dictionary, which may also hold null, unknown to TOML."""
    if isinstance(value, dict):
        return json.dumps(value)
    return list(value) if isinstance(value, tuple) else value


def text(value: Any) -> str:
    """A value in an error message."""
    return json.dumps(plain(value)) if isinstance(value, dict | tuple) else str(value)


def target(hint: Any) -> Any:
    """The type of a setting that may also be None: ``int`` of ``int | None``."""
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def coerce(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`.

    Raises
    ------
    WrongInput
        Saying what was expected of the setting `name`.
    """
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else coerce(name, choices[0], value)
    if typing.get_origin(hint) is Literal:
        if value in choices and isinstance(value, str):
            return value
        raise WrongInput(name, f"must be one of {', '.join(choices)}, got {_short(value)}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise WrongInput(name, f"must be true or false, got {_short(value)}")
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise WrongInput(name, f"must be a whole number, got {_short(value)}")
    if hint is float:
        if isinstance(value, str) and value in ("inf", "Infinity"):
            value = math.inf
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # no NaN
            try:
                return float(value)
            except OverflowError:
                raise WrongInput(name, "must be a number below 1.8e308") from None
        raise WrongInput(name, f"must be a number, got {_short(value)}")
    if hint is str:
        if isinstance(value, str):
            return value
        raise WrongInput(name, f"must be text, got {_short(value)}")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(coerce(name, choices[0], item) for item in value)
        raise WrongInput(name, f"must be a list of whole numbers, got {_short(value)}")
    if isinstance(value, str):  # a dictionary, written as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits among them
            raise WrongInput(name, f"is not valid JSON ({error}): {value[:60]}") from None
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        if (problem := _not_json(value)) is not None:
            raise WrongInput(name, problem)
        return value
    raise WrongInput(name, f'must be a JSON object such as {{"key": 1}}, got {_short(value)}')


def _not_json(value: Any, depth: int = 0) -> str | None:
    """What JSON cannot hold of a value, or other programs could not read back; None if all is well."""
    if depth > _DEEPEST:
        return f"is nested more than {_DEEPEST} levels deep"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return "must have texts as keys"
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((problem for item in value if (problem := _not_json(item, depth + 1)) is not None), None)
    if value is None or isinstance(value, str | bool):
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value <= MAX_SEED else f"holds {_short(value)}, a whole number of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"holds {value}: JSON has finite numbers only"
    return f"holds {_short(value)}, which JSON cannot"


def _short(value: Any) -> str:
    """A value in an error message, if it may be long."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"
