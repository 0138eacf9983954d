"""`python -m exporter.engine.tokenizer_reader`: config and tokenizer read by transformers, ahead.

Reading a tokenizer with 150,000 tokens takes 250 MB for a moment, and llama.cpp's converter needs
as much for torch; beside torch, transformers alone takes seconds to load. So a process without
torch reads both, writes down what converters ask of them and, where they are large, has ended
before torch is loaded.
Whatever else is asked, the tokenizer itself answers.
"""

import argparse
import ast
import copy
import copyreg
import importlib
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self

import msgspec
from tokenizers import AddedToken, Tokenizer

log = logging.getLogger("exporter")

NOT_AHEAD: Final = "the tokenizer could not be read ahead"
WHOLE: Final = "the tokenizer is loaded whole"
# What nobody else decides about a load.
_OURS: Final = frozenset({"trust_remote_code", "local_files_only"})
READ_SECONDS: Final = 1800.0
_LIBRARY: Final = "transformers"
# Tokenizers of up to this size take little memory beside torch's.
READ_ASIDE_BYTES: Final = 4 << 20
# The text by whose tokens the converter knows a pre-tokenizer.
_PROBE: Final = re.compile(r"^ +chktxt = ('.*')$", re.MULTILINE)


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """A token beside the vocabulary, as `tokenizers.AddedToken`."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What a tokenizer says of itself.

    Attributes:
        spelled: added tokens after they were encoded and decoded.
        rules: what `tokenizer.json` says of splitting.
    """

    vocab: dict[str, int]
    vocab_size: int
    added_vocab: dict[str, int]
    added: dict[int, Added]
    special_tokens: list[str]
    special_ids: list[int]
    probe: str
    probe_ids: list[int]
    spelled: dict[str, str]
    rules: dict[str, Any]


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """What was read ahead of a model's folder.

    Attributes:
        config: `config.json` with the defaults of its model type; None when transformers does not
            read it, which converters meet themselves.
        tokenizer: None where converters take a sentencepiece model instead.
    """

    config: dict[Any, Any] | None
    tokenizer: Answers | None


class ReadTokenizer:
    """Takes the place of a tokenizer that was read; passes on to it what was not foreseen."""

    is_fast = True

    def __init__(self, answers: Answers, load: Callable[[], Any]) -> None:
        self._answers = answers
        self._load = load
        self.vocab = answers.vocab
        self.vocab_size = answers.vocab_size
        self.all_special_tokens = answers.special_tokens
        self.all_special_ids = answers.special_ids
        self.rules = answers.rules
        self.added_tokens_decoder = {
            number: AddedToken(**msgspec.structs.asdict(one))
            for number, one in answers.added.items()
        }

    def __len__(self) -> int:
        return len(self.vocab)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def get_added_vocab(self) -> dict[str, int]:
        return self._answers.added_vocab

    def encode(self, text: str, **options: Any) -> Any:
        """Token ids; of an added token alone, what `decode` knows again."""
        if text == self._answers.probe and not options:
            return self._answers.probe_ids
        if text in self._answers.spelled and options == {"add_special_tokens": False}:
            return _Spelled(text)
        return self._tokenizer.encode(text, **options)

    def decode(self, ids: Any, **options: Any) -> Any:
        if isinstance(ids, _Spelled) and not options:
            return self._answers.spelled[ids.text]
        return self._tokenizer.decode(ids, **options)

    @cached_property
    def _tokenizer(self) -> Any:
        log.info(WHOLE)
        return self._load()


class _Spelled:
    """The ids of an added token, which nobody looks at before they are decoded again."""

    def __init__(self, text: str) -> None:
        self.text = text


@contextmanager
def read_ahead(folder: Path, vendor: Path) -> Iterator[None]:
    """While it lasts, transformers' `Auto` classes return for this folder what was read ahead.

    Enter it before torch is loaded: a large tokenizer is read to its end first, since both at once
    take too much memory. A small one is read while the caller goes on.
    """
    with _Reading.start(folder, vendor) as reading:
        size_bytes = sum(path.stat().st_size for path in folder.glob("tokenizer.*"))
        if size_bytes > READ_ASIDE_BYTES:
            reading.answer()
        stand_in = _StandIn(
            AutoConfig=_config_reader(folder, reading),
            AutoTokenizer=_tokenizer_reader(folder, reading),
        )
        if _LIBRARY in sys.modules:
            stand_in.load()
        else:
            sys.modules[_LIBRARY] = stand_in
        try:
            yield
        finally:
            stand_in.leave()


class _StandIn(ModuleType):
    """Takes the place of transformers, which loads in a second, until more of it is asked for."""

    def __init__(self, **replaced: type) -> None:
        super().__init__(_LIBRARY)
        vars(self).update(replaced, __path__=_LibraryPath(self))
        self._replaced = replaced
        self._kept: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """The library itself, which is in place from now on, with what is replaced of it."""
        if sys.modules.get(_LIBRARY) is self:
            del sys.modules[_LIBRARY]
        library = importlib.import_module(_LIBRARY)
        if self._kept is None:
            self._kept = {name: vars(library).get(name) for name in self._replaced}
            vars(library).update(self._replaced)
        return library

    def leave(self) -> None:
        """Puts back what was replaced."""
        if sys.modules[_LIBRARY] is self:
            del sys.modules[_LIBRARY]
        library = vars(sys.modules[_LIBRARY]) if self._kept is not None else {}
        for name, value in (self._kept or {}).items():
            del library[name]
            if value is not None:
                library[name] = value


class _LibraryPath(list[str]):
    """Where the library's modules lie; whoever looks for one needs the library loaded."""

    def __init__(self, stand_in: _StandIn) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __iter__(self) -> Iterator[str]:
        return iter(self._stand_in.load().__path__)


class _Reading:
    """A process that reads a folder, and what it found once that is asked for."""

    def __init__(self, process: "subprocess.Popen[bytes]", answers: Path) -> None:
        self._process = process
        self._answers = answers

    @classmethod
    @contextmanager
    def start(cls, folder: Path, vendor: Path) -> Iterator[Self]:
        """Starts the process; it ends with the context."""
        with tempfile.TemporaryDirectory() as scratch:
            answers = Path(scratch) / "answers"
            command = [
                sys.executable, "-m", "exporter.engine.tokenizer_reader", "--model", str(folder),
                "--probe", str(vendor / "conversion" / "base.py"), "--answers", str(answers),
            ]  # fmt: skip
            with subprocess.Popen(command) as process:
                try:
                    yield cls(process, answers)
                finally:
                    process.kill()

    def answer(self) -> Ahead | None:
        """What was read; None when reading failed, and the converter will meet why."""
        return self._answer

    @cached_property
    def _answer(self) -> Ahead | None:
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(READ_SECONDS) == 0:
                return msgspec.msgpack.decode(self._answers.read_bytes(), type=Ahead)
        log.info(NOT_AHEAD)
        return None


def _config_reader(folder: Path, reading: _Reading) -> type:
    """Takes the place of `AutoConfig`, of which converters want a dictionary."""

    class Config:
        def __init__(self, settings: dict[Any, Any]) -> None:
            self._settings = settings

        def to_dict(self) -> dict[Any, Any]:
            return copy.deepcopy(self._settings)

    class Reader:
        @staticmethod
        def from_pretrained(wanted: Any, *arguments: Any, **options: Any) -> Any:
            ahead = reading.answer() if Path(wanted) == folder else None
            if ahead is not None and ahead.config is not None:
                return Config(ahead.config)
            module = importlib.import_module(f"{_LIBRARY}.models.auto.configuration_auto")
            return module.AutoConfig.from_pretrained(
                wanted, *arguments, **_ours(options), trust_remote_code=False, local_files_only=True
            )

    return Reader


def _tokenizer_reader(folder: Path, reading: _Reading) -> type:
    """Takes the place of `AutoTokenizer`."""

    class Reader:
        @staticmethod
        def from_pretrained(wanted: Any, *arguments: Any, **options: Any) -> Any:
            def load() -> Any:
                module = importlib.import_module(f"{_LIBRARY}.models.auto.tokenization_auto")
                return module.AutoTokenizer.from_pretrained(
                    wanted, *arguments, **_ours(options), trust_remote_code=False,
                    local_files_only=True,
                )  # fmt: skip

            ahead = reading.answer() if Path(wanted) == folder else None
            if ahead is not None and ahead.tokenizer is not None:
                return ReadTokenizer(ahead.tokenizer, load)
            return load()

    return Reader


def _ours(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that would let a model's own code run, or reach the network."""
    return {name: value for name, value in options.items() if name not in _OURS}


def main() -> int:
    """Read, write down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    arguments = parser.parse_args()
    found = _PROBE.search(arguments.probe.read_text(encoding="utf-8"))
    probe = ast.literal_eval(found[1]) if found else ""
    # transformers does without torch where there is none.
    sys.modules["torch"] = None  # type: ignore[assignment]
    once_read()
    tokenizer = None
    # Converters take a sentencepiece model where there is one.
    folder: Path = arguments.model
    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        from transformers import AutoTokenizer

        tokenizer = answers_of(
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
            probe,
        )
    ahead = Ahead(config=_config_of(folder), tokenizer=tokenizer)
    arguments.answers.write_bytes(msgspec.msgpack.encode(ahead))
    return 0


def _config_of(folder: Path) -> dict[Any, Any] | None:
    """The config as transformers completes it."""
    from transformers import AutoConfig

    try:
        read = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config: dict[Any, Any] = read.to_dict()
        # Converters get what JSON can say, or read the config themselves.
        msgspec.msgpack.encode(config)
    except Exception:  # noqa: BLE001 - whatever a config is refused for, the converter says it
        return None
    return config


def answers_of(tokenizer: Any, probe: str) -> Answers:
    """What a transformers tokenizer says of itself."""
    added = {
        number: Added(**{name: getattr(one, name) for name in Added.__struct_fields__})
        for number, one in tokenizer.added_tokens_decoder.items()
    }
    unchanged = [one.content for one in added.values() if not one.normalized]
    return Answers(
        vocab=tokenizer.get_vocab(),
        vocab_size=tokenizer.vocab_size,
        added_vocab=tokenizer.get_added_vocab(),
        added=added,
        special_tokens=tokenizer.all_special_tokens,
        special_ids=tokenizer.all_special_ids,
        probe=probe,
        probe_ids=tokenizer.encode(probe),
        spelled={
            text: tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
            for text in unchanged
        },
        rules=rules_of(tokenizer.backend_tokenizer),
    )


def rules_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer.json` says of splitting, without the vocabulary that it also holds."""
    split, kind = tokenizer.pre_tokenizer, type(tokenizer.model).__name__
    return {
        "pre_tokenizer": None if split is None else json.loads(split.__getstate__()),
        "model": {"type": kind, "ignore_merges": getattr(tokenizer.model, "ignore_merges", None)},
    }


def once_read() -> None:
    """Makes copies of a tokenizer the tokenizer itself: transformers copies it by way of its text.

    A reduction to a name makes `copy.deepcopy` return the object.
    """
    copyreg.pickle(Tokenizer, lambda _tokenizer: "tokenizer")


if __name__ == "__main__":
    sys.exit(main())
