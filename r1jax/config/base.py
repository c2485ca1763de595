"""What every config shares: its error, its JSON form, and the difference of two."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A value of a config that cannot work; the message is one line for the person who wrote it."""


class GuardStop(RuntimeError):
    """A guard stopped the run (no signal, failing rewards, too little memory); the message says which, and what to do."""


class ProcessLost(RuntimeError):
    """A process of several ended, or did not come to where the others waited; the message says which."""


def to_json(config: Any) -> Any:
    """A config as JSON values: dataclasses become objects, tuples become lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(k): to_json(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_json(v) for v in config]
    if config is None or isinstance(config, str | int | float | bool):
        return config
    raise ConfigError(
        f"{type(config).__name__} value {config!r} cannot be written to config.json; name callables by import path, 'pkg.mod:f'"
    )


def from_json(cls: type[T], value: Any, where: str = "config") -> T:
    """The inverse of ``to_json``. Fields that are absent keep their defaults.

    Raises:
      ConfigError: an unknown field or a value of another type, with its dotted place.
    """
    if dataclasses.is_dataclass(cls):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object with the fields of {cls.__name__}, got {value!r}")
        hints = typing.get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        for key in value:
            if key not in names:
                raise ConfigError(f"{where}.{key}: {cls.__name__} has no such field (it has {', '.join(sorted(names))})")
        return cls(**{k: from_json(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if isinstance(value, dict) and "kind" in value:  # tagged unions: the class whose `kind` literal matches
            options = [a for a in options if value["kind"] in typing.get_args(typing.get_type_hints(a)["kind"])] or options
        errors = []
        for option in options:
            try:
                return from_json(option, value, where)
            except ConfigError as e:
                errors.append(str(e))
        raise ConfigError("; ".join(errors))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(from_json(args[0], v, f"{where}.{i}") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {value!r}")
        return {k: from_json(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if cls is Any:
        return value
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {cls.__name__}, got {value!r}")
    return value


def diff(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """The leaves at which two JSON values differ, as (dotted place, old, new); an absent side is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(old) + [k for k in new if k not in old]
        return [d for k in keys for d in diff(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in diff(a, b, f"{where}.{i}")]
    return [] if old == new else [(where, old, new)]
