"""Frozen dataclasses to JSON and back; an unknown key is an error, never ignored."""

import dataclasses
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a dataclass, nested ones included, into plain JSON values.

    Args:
        config: A dataclass instance whose fields are JSON values, tuples, paths or dataclasses.

    Returns:
        A dictionary of JSON values; tuples become lists.
    """
    return typing.cast(
        dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config), default=str))
    )


def from_dict(kind: type[T], values: dict[str, Any], *, where: str = "config") -> T:
    """Build a dataclass from JSON values.

    Args:
        kind: The dataclass to build.
        values: What ``to_dict`` returned.
        where: Name of the place the values come from, for error messages.

    Returns:
        An instance of ``kind``; fields that ``values`` leaves out take their defaults.

    Raises:
        ValueError: If a key is unknown, a value has the wrong type, or a required field is missing.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{where} must be an object with the fields of {kind.__name__}, not {values!r}."
        )
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; {kind.__name__} knows {names}.")
    built = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise ValueError(f"{where} does not describe a {kind.__name__}: {error}.") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [kind for kind in args if kind is not type(None)]
        if all(typing.get_origin(kind) is typing.Literal for kind in kinds):
            # A union of literals stays a union in typing; its values are one list.
            allowed = tuple(choice for kind in kinds for choice in typing.get_args(kind))
            return _convert(typing.Literal[allowed], value, where)
        return _convert(kinds[0], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {value!r}.")
        members = args[:1] * len(value) if len(args) == 2 and args[1] is ... else args
        if len(members) != len(value):
            raise ValueError(f"{where} must have {len(members)} values, not {value!r}.")
        return tuple(
            _convert(k, v, f"{where}[{i}]")
            for i, (k, v) in enumerate(zip(members, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, not {value!r}.")
        return {k: _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where} ({value!r}) must be one of {list(args)}.")
        return value
    if hint is Path:
        return Path(_convert(str, value, where))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ValueError(f"{where} ({value!r}) must be of type {hint.__name__}.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a temporary name first, then a rename.

    Args:
        path: Where to write; its folder must exist.
        value: A JSON value or a dataclass.
    """
    if dataclasses.is_dataclass(value):
        value = to_dict(value)
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The parsed value.

    Raises:
        ValueError: If the file is missing or not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
