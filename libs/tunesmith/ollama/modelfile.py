"""A Modelfile as Ollama reads it, and the creation request that `ollama create` makes of it.

The reader accepts what Ollama's accepts and refuses the rest: quotes have no escapes, a value ends
at the first line end at which its quotes are closed, and unprintable characters are dropped.

Source: Modelfile reference (docs/modelfile.mdx) and parser of Ollama.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from tunesmith.errors import InputError

CODE: Final = "DEP_OLLAMA_REGISTRATION_FAILED"
MAX_CHARS: Final = 1 << 20
DOWNLOAD_AGAIN: Final = "Download it again: remove the file and run `tunesmith pull` once more."

_LARGEST_FLOAT32: Final = float.fromhex("0x1.fffffep127")
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_PARAMETER_CHARACTERS: Final = _LETTERS | frozenset("0123456789_")
_SPACES: Final = frozenset(" \t")
_LINE_ENDS: Final = frozenset("\r\n")
# FROM, ADAPTER and the other instructions of a bundle; Ollama's remaining instructions name files
# or programs, which a bundle does not use.
_COMMANDS: Final = frozenset(
    {"from", "adapter", "template", "system", "license", "message", "parameter"}
)
_ROLES: Final = frozenset({"system", "user", "assistant"})
# Parameters that Ollama once accepted and now ignores.
_DEPRECATED: Final = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One instruction; a parameter and a message carry their own name or role beside the value."""

    name: str
    value: str
    argument: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """The content of a Modelfile.

    `source` and `adapter` are paths or names as written; empty when there is none.
    """

    source: str
    adapter: str
    template: str
    system: str
    licenses: Sequence[str]
    messages: Sequence[tuple[str, str]]
    parameters: Mapping[str, Any]

    def create_fields(self) -> dict[str, Any]:
        """The fields of the creation request beside names and files; empty ones are left out."""
        fields: dict[str, Any] = {}
        if self.template:
            fields["template"] = self.template
        if self.system:
            fields["system"] = self.system
        if self.licenses:
            fields["license"] = list(self.licenses)
        if self.messages:
            fields["messages"] = [
                {"role": role, "content": content} for role, content in self.messages
            ]
        if self.parameters:
            fields["parameters"] = dict(self.parameters)
        return fields


def parse(text: str) -> Modelfile:
    """Reads a Modelfile.

    Raises:
        InputError: DEP_OLLAMA_REGISTRATION_FAILED with the line that is not understood.
    """
    if len(text) > MAX_CHARS:
        _refuse(f"it is longer than {MAX_CHARS} characters")
    commands = _Reader(text.removeprefix("\ufeff")).commands()
    last = {command.name: command.value for command in commands}
    if not last.get("from"):
        _refuse("it has no FROM line")
    return Modelfile(
        source=last["from"],
        adapter=last.get("adapter", ""),
        template=last.get("template", ""),
        system=last.get("system", ""),
        licenses=[command.value for command in commands if command.name == "license"],
        messages=[
            (command.argument, command.value) for command in commands if command.name == "message"
        ],
        parameters=_parameters(commands),
    )


class _Reader:
    """Parses the text in one pass."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def commands(self) -> list[Command]:
        found = []
        while self._skip_to_command():
            found.append(self._command())
        return found

    def _skip_to_command(self) -> bool:
        """Skips blanks and comments; whether anything follows."""
        in_comment = False
        for position in range(self._at, len(self._text)):
            character = self._text[position]
            if character in _LINE_ENDS:
                in_comment = False
            elif not in_comment and character == "#":
                in_comment = True
            elif not in_comment and character not in _SPACES:
                self._at = position
                return True
        self._at = len(self._text)
        return False

    def _command(self) -> Command:
        name = self._word(_LETTERS).lower()
        if name not in _COMMANDS:
            _refuse(f"{name.upper()[:40]!r} is no instruction", line=self._line())
        argument = ""
        if name == "parameter":
            argument = self._word(_PARAMETER_CHARACTERS)
        elif name == "message":
            argument = self._word(_LETTERS)
            if argument not in _ROLES:
                _refuse(f"{argument[:40]!r} is no role", line=self._line())
        return Command(name=name, value=self._value(), argument=argument)

    def _word(self, characters: frozenset[str]) -> str:
        """A word and the one space after it."""
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in characters:
            self._at += 1
        if self._at == start or self._text[self._at : self._at + 1] not in _SPACES:
            _refuse("an instruction is not complete", line=self._line())
        self._at += 1
        return self._text[start : self._at - 1]

    def _value(self) -> str:
        kept: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character in _LINE_ENDS:
                value = _unquoted("".join(kept))
                if value is not None:
                    return value
                kept.append(character)
            elif character in _SPACES or character.isprintable():
                kept.append(character)
        value = _unquoted("".join(kept))
        if value is None:
            _refuse("quotes are not closed", line=self._line())
        return value

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1


def _unquoted(text: str) -> str | None:
    """The value between its quotes; None while they are open."""
    text = text.strip(" \t\r\n")
    for quote in ('"""', '"'):
        if text.startswith(quote):
            is_closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if is_closed else None
    return text


def _parameters(commands: Sequence[Command]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for command in commands:
        if command.name != "parameter" or command.argument in _DEPRECATED:
            continue
        name, value = command.argument, command.value
        if name == "stop":
            found[name] = [*found.get(name, ()), value]
            continue
        reader = _READERS.get(name)
        if reader is None:
            _refuse(f"there is no parameter {name[:40]!r}")
        try:
            found[name] = reader(value)
        except (ValueError, OverflowError):
            _refuse(f"{value[:40]!r} is no value for {name}")
    return found


def _float32(text: str) -> float:
    """A number in the precision that Ollama holds it in, by its shortest decimal."""
    packed = struct.pack("<f", float(text))
    exact: float = struct.unpack("<f", packed)[0]
    if not math.isfinite(exact):
        raise ValueError(text)
    shorter = (float(f"{exact:.{digits}g}") for digits in range(1, 10))
    # Shorter decimals of the largest numbers would exceed their range.
    fitting = (each for each in shorter if abs(each) <= _LARGEST_FLOAT32)
    return next((each for each in fitting if struct.pack("<f", each) == packed), exact)


def _int(text: str) -> int:
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(text)
    return int(text)


def _bool(text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(text)


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
        ),
        _float32,
    ),
    **dict.fromkeys(
        (
            "top_k",
            "num_keep",
            "seed",
            "num_predict",
            "repeat_last_n",
            "num_ctx",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
            "draft_num_predict",
        ),
        _int,
    ),
    "use_mmap": _bool,
}


def _refuse(reason: str, *, line: int = 0) -> NoReturn:
    where = f" (line {line})" if line else ""
    raise InputError(
        CODE,
        f"The Modelfile cannot be read{where}: {reason}.",
        remedy="Download the bundle again; a Modelfile of your own goes to `ollama create`.",
        metadata={"line": str(line)} if line else None,
    )
