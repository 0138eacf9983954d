"""Settings of a process: read once from the environment into one frozen dataclass."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chassis import redaction
from lexicon.faults import Fault, FaultCode

ConfigT = TypeVar("ConfigT")
MASK = "***"
_KEY = "tunesmith.env"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_UNSET = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variable:
    name: str
    doc: str
    secret: bool
    parse: Callable[[str], Any] | None


def env(
    name: str,
    *,
    default: Any = _UNSET,
    doc: str,
    secret: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that is read from an environment variable.

    Args:
        name: name of the variable; a secret may be in a file that `{name}_FILE` names.
        default: value when the variable is unset or empty; without one it is required.
        doc: what to set it to, with unit; shown as the hint when it is missing or wrong.
        secret: never shown, neither in logs nor in repr().
        parse: makes the value from the text, raising ValueError; default by the field's type.
    """
    variable = _Variable(name=name, doc=doc, secret=secret, parse=parse)
    metadata = {_KEY: variable}
    if default is _UNSET:
        return dataclasses.field(repr=not secret, metadata=metadata)
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def load(config_class: type[ConfigT], environ: Mapping[str, str]) -> ConfigT:
    """The configuration that the environment describes.

    Raises:
        Fault: CONFIG_ENV_MISSING for a required variable, CONFIG_INVALID for a text that does not
            parse. Values of secrets are in neither message.
    """
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in _fields(config_class):
        variable: _Variable = field.metadata[_KEY]
        text = _text_of(variable, environ)
        if text is None:
            if field.default is dataclasses.MISSING:
                raise Fault(
                    FaultCode.CONFIG_ENV_MISSING,
                    f"{variable.name} environment variable not set!",
                    remedy=f"Hint: {variable.doc}",
                    variable=variable.name,
                )
            continue
        parse = variable.parse or _parser_of(hints[field.name])
        try:
            values[field.name] = parse(text)
        except ValueError as error:
            shown = "its value" if variable.secret else f"'{redaction.redact(text)}'"
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"{variable.name}: {shown} is not usable.",
                remedy=f"Hint: {variable.doc}",
                variable=variable.name,
            ) from error
    return config_class(**values)


def describe(config: object) -> dict[str, str]:
    """Every setting by its variable's name, secrets masked, for the first log line."""
    shown: dict[str, str] = {}
    for field in _fields(type(config)):
        variable: _Variable = field.metadata[_KEY]
        value = getattr(config, field.name)
        if variable.secret:
            shown[variable.name] = MASK if value else ""
        else:
            shown[variable.name] = redaction.redact("" if value is None else str(value))
    return shown


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host is in brackets.

    Raises:
        ValueError: there is no port, or it is not one.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(address)
    return host, int(port)


def _fields(config_class: type) -> tuple[dataclasses.Field[Any], ...]:
    assert dataclasses.is_dataclass(config_class), config_class
    fields = dataclasses.fields(config_class)
    return tuple(field for field in fields if _KEY in field.metadata)


def _text_of(variable: _Variable, environ: Mapping[str, str]) -> str | None:
    text = environ.get(variable.name, "")
    path = environ.get(f"{variable.name}_FILE", "") if variable.secret else ""
    if path and not text:
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"{variable.name}_FILE: the file cannot be read.",
                remedy=f"Hint: {variable.doc}",
                variable=variable.name,
            ) from error
    return text or None


def _parser_of(annotation: Any) -> Callable[[str], Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        options = [part for part in typing.get_args(annotation) if part is not type(None)]
        assert len(options) == 1, annotation
        return _parser_of(options[0])
    if annotation is bool:
        return _parse_bool
    assert annotation in (str, int, float, Path), f"{annotation} needs parse="
    parser: Callable[[str], Any] = annotation
    return parser


def _parse_bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(text)
