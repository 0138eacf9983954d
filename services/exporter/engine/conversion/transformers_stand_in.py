"""What converters get in place of transformers: config and tokenizer as another process read them.

Whatever else is asked, the library itself answers, which loads in a second.
"""

import copy
import importlib
import logging
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
from tokenizers import AddedToken

from exporter.engine.conversion import tokenizer_reader
from exporter.engine.conversion.tokenizer_reader import Ahead, Answers

log = logging.getLogger("exporter")

NOT_AHEAD: Final = "the tokenizer could not be read ahead"
WHOLE: Final = "the tokenizer is loaded whole"
# What nobody else decides about a load.
_OURS: Final = frozenset({"trust_remote_code", "local_files_only"})
READ_SECONDS: Final = 1800.0
_LIBRARY: Final = "transformers"
# Tokenizers of up to this size take little memory beside torch's.
READ_ASIDE_BYTES: Final = 4 << 20


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
                sys.executable, "-m", tokenizer_reader.__name__, "--model", str(folder),
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
