"""A `tokenizer.json`: its tokens and its rules, read without what takes the most memory."""

import ctypes
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from corpus.labels import unbounded
from exporter.domain.vocabulary import Added, Tokens
from lexicon.faults import Fault, FaultCode

TOKENIZER_NAME: Final = "tokenizer.json"
SETTINGS_NAME: Final = "tokenizer_config.json"
# Merges that are objects at once; half a million of them would take 75 MB.
ENTRIES_AT_ONCE: Final = 4096

# The parts of a `tokenizer.json` that split a text before it is merged, as messages call them.
SPLITTING: Final = {"normalizer": "normalizer", "pre_tokenizer": "pre-tokenizer"}
_TABLES: Final = frozenset({"vocab", "merges"})
_NO_MODEL: Final[Mapping[str, Any]] = {"type": "BPE", "vocab": {}, "merges": []}

_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_entry = msgspec.json.Decoder().decode


def read_tokenizer(adapter_folder: Path) -> Tokenizer:
    """The tokenizer that is stored with the adapter; it never cuts or fills a text.

    Raises:
        Fault: EXPORT_ADAPTER_MISSING when there is none, MODEL_WEIGHTS_INVALID.
    """
    path = adapter_folder / TOKENIZER_NAME
    if not path.is_file():
        raise Fault(
            FaultCode.EXPORT_ADAPTER_MISSING, f"The adapter came without its {TOKENIZER_NAME}."
        )
    try:
        tokenizer = unbounded(Tokenizer.from_file(str(path)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A file that the library did not foresee makes it panic, which is no Exception.
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"The adapter's {TOKENIZER_NAME} cannot be read: {str(error)[:200]}",
            file=TOKENIZER_NAME,
        ) from error
    # Reading takes several times the memory of a tokenizer; what comes next needs its own.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return tokenizer


def tokens_of(tokenizer: Tokenizer) -> Tokens:
    """All tokens of a tokenizer."""
    return Tokens(ids=tokenizer.get_vocab(with_added_tokens=True), added=added_of(tokenizer))


def added_of(tokenizer: Tokenizer) -> dict[int, Added]:
    """The tokens beside the vocabulary of its model, by number."""
    return {
        number: Added(
            special=token.special,
            normalized=token.normalized,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
        )
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }


def read_tokens(path: Path) -> Tokens:
    """The tokens of a `tokenizer.json`, without its merges, which take the most memory."""
    document = _document(path)
    table = _entry(_parts(document["model"])["vocab"])
    # A unigram model lists its pieces with their scores.
    is_scored = isinstance(table, list)
    ids = {text: index for index, (text, _) in enumerate(table)} if is_scored else table
    added: dict[int, Added] = {}
    for token in _entry(document.get("added_tokens", msgspec.Raw(b"[]"))):
        ids[token["content"]] = token["id"]
        flags = {name: bool(token.get(name)) for name in Added.__slots__}
        added[token["id"]] = Added(**flags)
    return Tokens(ids=ids, added=added)


def read_rules(path: Path) -> dict[str, object]:
    """How a `tokenizer.json` splits a text, whichever version of a library wrote it."""
    document = _document(path)
    model = _parts(document["model"])
    bare: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": _NO_MODEL,
        **{name: _entry(document[name]) for name in SPLITTING if name in document},
    }
    canonical = json.loads(Tokenizer.from_str(json.dumps(bare)).to_str())
    settings = {name: _entry(part) for name, part in model.items() if name not in _TABLES}
    return {
        **{part: canonical.get(name) for name, part in SPLITTING.items()},
        # What is absent, null or off is the same.
        "setting of merging": {name: value for name, value in settings.items() if value},
        "list of merges": _digest(model.get("merges", model["vocab"])),
    }


def _digest(table: msgspec.Raw) -> str:
    """A digest of merges, which are pairs, or texts with a space between their halves.

    A unigram model has scored pieces in their place, others only the numbers of their words.
    """
    digest = hashlib.sha256()
    if bytes(memoryview(table)[:1]) == b"{":
        return ""
    parts = msgspec.json.decode(table, type=list[msgspec.Raw])
    for start in range(0, len(parts), ENTRIES_AT_ONCE):
        for entry in _entry(b"[" + b",".join(parts[start : start + ENTRIES_AT_ONCE]) + b"]"):
            left, right = entry.split(" ", 1) if isinstance(entry, str) else entry
            digest.update(f"{left}\0{right}\0".encode())
    return digest.hexdigest()


def _document(path: Path) -> dict[str, msgspec.Raw]:
    try:
        document = _parts(path.read_bytes())
        _parts(document["model"])
    except (msgspec.DecodeError, KeyError) as error:
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID, f"{path.name} is no tokenizer.", file=path.name
        ) from error
    return document
