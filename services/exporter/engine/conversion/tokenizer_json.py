"""`tokenizer.json` without what nobody asks for: its vocabulary and merges take 280 MB as objects.

llama.cpp's converter looks at the settings beside them, and at the merges where its format has any.
Here both stay bytes of the file until they are asked for.
"""

import json
from typing import IO, Any, Final

import msgspec

_LARGE: Final = frozenset({"vocab", "merges"})
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_whole = msgspec.json.Decoder().decode


class TokenizerReader:
    """Takes the place of the module `json` where a converter reads tokenizers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(json, name)

    def load(self, file: IO[str]) -> Any:
        """What `json.load` returns; the tables in a document's `model` appear when asked for."""
        content = file.buffer.read()  # type: ignore[attr-defined]  # of every file opened as text
        try:
            return {
                name: _model(part) if name == "model" else _whole(part)
                for name, part in _parts(content).items()
            }
        except msgspec.DecodeError:
            # Python reads what the standard does not know, like lone surrogates, and other kinds.
            return json.loads(content)


class _Model(dict[str, Any]):
    """The part `model` of a tokenizer, whose tables are decoded each time that they are read."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return _whole(value) if isinstance(value, msgspec.Raw) else value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if super().__contains__(name) else default


def _model(part: msgspec.Raw) -> Any:
    if not bytes(part).lstrip().startswith(b"{"):
        return _whole(part)
    parts = _parts(part)
    return _Model({name: raw if name in _LARGE else _whole(raw) for name, raw in parts.items()})
