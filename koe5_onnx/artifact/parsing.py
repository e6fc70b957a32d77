"""Create dataclasses from parsed JSON and validate every field. Used for manifests."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from koe5_onnx.errors import ArtifactError

AGAIN = "Export or download the artifact again"
_T = TypeVar("_T")


def build(kind: type[_T], data: Any, where: str) -> _T:
    """Create the dataclass `kind` from parsed JSON, which error messages call `where`.

    Every field is required, even if it has a default in Python. Unknown fields are rejected, because
    this version would ignore what they mean.

    Raises:
        ArtifactError: A field is missing, unknown or of the wrong type.
    """
    if not isinstance(data, dict):
        raise ArtifactError(f"{where}: expected an object, found {type(data).__name__}. {AGAIN}")
    hints = typing.get_type_hints(kind)
    if missing := sorted(hints.keys() - data.keys()):
        raise ArtifactError(f"{where} lacks required fields: {', '.join(missing)}. {AGAIN}")
    if unknown := sorted(data.keys() - hints.keys()):
        raise ArtifactError(f"{where} has unknown fields: {', '.join(unknown)}. Update koe5-onnx")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _value(hint: Any, data: Any, where: str) -> Any:
    if hint is Any:
        return data
    if args := typing.get_args(hint):
        return _generic_value(typing.get_origin(hint), args, data, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), data, where)
    if hint is float and type(data) is int:
        return float(data)
    if type(data) is not hint:
        raise ArtifactError(f"{where}: expected {hint.__name__}, found {data!r}. {AGAIN}")
    return data


def _generic_value(origin: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    if origin is types.UnionType:
        return None if data is None else _value(args[0], data, where)
    kind, wanted = (dict, "an object") if origin is Mapping else (list, "a list")
    if not isinstance(data, kind):
        raise ArtifactError(f"{where}: expected {wanted}, found {type(data).__name__}. {AGAIN}")
    if isinstance(data, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in data.items()}
    return tuple(_value(args[0], item, f"{where}[{turn}]") for turn, item in enumerate(data))
