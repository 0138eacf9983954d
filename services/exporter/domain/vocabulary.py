"""The tokens of a training and those of a GGUF: what is the same, what is written, what is refused.

A GGUF is made from the base model, and the adapter brings the tokenizer that it was trained with.
Only what changes the ids of a text, or whether a token is shown, counts as a difference. Tokens
that the training added in spare rows of the base are written into the file; anything that the file
cannot express is refused by the names of its tokens.
Source: `get_vocab_base` and `_create_vocab_sentencepiece` in conversion/base.py, and
`tokenizer_st_partition` in src/llama-vocab.cpp of llama.cpp.
"""

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from exporter.domain.token_cuts import SPACE_MARK
from lexicon.faults import Fault, FaultCode

# Tokens that a message names, and characters of each.
NAMED_TOKENS: Final = 5
NAMED_CHARACTERS: Final = 32
# What the converter writes for a row of the embeddings that the tokenizer has no token for.
_SPARE: Final = re.compile(r"\[PAD\d+\]")
# The names by which the converter takes an added token for a control token, whatever its flag says.
_LOOKS_SPECIAL: Final = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<[|｜].*[|｜]>|<unused.*>")

# Texts that meet the corners of tokenizers: spaces, digits, cases, scripts, joined emoji, code.
CORNER_TEXTS: Final = (
    " leading and  double   spaces\n\n\nlines\t\ttabs ",
    "Numbers 0 12 345 6789 3.14159 1,000,000 2024-01-31",
    "I'm you're we've THEY'LL don't can't",
    "Ünïcödé ß ﬁ Å é 한국어 العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🇩🇪 🙂‍↔️ ½ ² ① ∑ →",
    "if (a[i] != b->c) { return x<<2; } // <tag attr='v'/>\n    indented\tcode",
)

END_KEY: Final = "tokenizer.ggml.eos_token_id"
END_OF_TURN_KEY: Final = "tokenizer.ggml.eot_token_id"
# Where a GGUF holds the tokens that `tokenizer_config.json` names.
SPECIAL_KEYS: Final[Mapping[str, str]] = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": END_KEY,
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


class TokenKind(enum.IntEnum):
    """The kinds of tokens in a GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The flags of a token that is found in a text before the text is split."""

    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a tokenizer: all by their text, and the flags of those that were added."""

    ids: Mapping[str, int]
    added: Mapping[int, Added]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTokens:
    """The vocabulary in a GGUF, one token for each row of the embeddings."""

    texts: Sequence[str]
    kinds: Sequence[int]

    def is_spare(self, number: int) -> bool:
        """Whether the row has no token."""
        is_unused = self.kinds[number] == TokenKind.UNUSED
        return is_unused and bool(_SPARE.fullmatch(self.texts[number]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A token that the training has otherwise; `kind` is what the file must say, None as it does.

    `is_new` says that the file has no text for it yet.
    """

    number: int
    text: str
    kind: TokenKind | None
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A token that no file of this base can hold, and why."""

    number: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What the training's tokens and the file's do not share, in the order of the numbers.

    Attributes:
        beyond: tokens with a number that the base has no row for.
    """

    changes: tuple[Change, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    beyond: tuple[Change, ...] = ()

    @property
    def added_texts(self) -> list[str]:
        """The tokens that the training added."""
        return [change.text for change in (*self.changes, *self.beyond) if change.is_new]


def compare(trained: Tokens, base: Tokens, file: FileTokens) -> Differences:
    """Compares the training's tokens with those of its base and of the base's GGUF.

    The base's own tokenizer decides what is the same, as converters rewrite some texts; the GGUF
    decides what is still free.
    """
    changes: dict[int, Change] = {}
    conflicts: dict[int, Conflict] = {}
    for found in (*_other_texts(trained, base, file), *_other_flags(trained, base, file)):
        if isinstance(found, Change) and found.number not in changes:
            changes[found.number] = found
        elif isinstance(found, Conflict):
            conflicts.setdefault(found.number, found)
    conflicts.update(_unwritable(changes.values(), file))
    rows = len(file.texts)
    kept = [changes[number] for number in sorted(changes) if number not in conflicts]
    return Differences(
        changes=tuple(change for change in kept if change.number < rows),
        conflicts=tuple(conflicts[number] for number in sorted(conflicts)),
        beyond=tuple(change for change in kept if change.number >= rows),
    )


def tokens_of_file(file: FileTokens, trained: Tokens) -> Tokens:
    """The base's tokens by its GGUF alone, where the base came without a `tokenizer.json`.

    A GGUF knows of the flags only what shows in a token's kind: where that fits the training's
    flags, those are taken to be the base's.
    """
    ids: dict[str, int] = {}
    added: dict[int, Added] = {}
    for number, (text, kind) in enumerate(zip(file.texts, file.kinds, strict=True)):
        if file.is_spare(number):
            continue
        # Converters write the spaces of a user-defined token as spaces.
        spelled = text.replace(" ", SPACE_MARK)
        known = spelled if text not in trained.ids and spelled in trained.ids else text
        ids[known] = number
        flags = trained.added.get(number)
        match kind:
            case TokenKind.UNKNOWN:
                fits = True
            case TokenKind.CONTROL:
                fits = flags is not None and (flags.special or _looks_special(known))
            case TokenKind.USER_DEFINED:
                fits = flags is not None and not flags.special
            case _:
                continue
        if flags is not None:
            added[number] = flags if fits else replace(flags, special=not flags.special)
    return Tokens(ids=ids, added=added)


def require_expressible(
    differences: Differences, *, row_count: int, trained_row_count: int
) -> None:
    """Refuses tokens that a GGUF of the base has no place for.

    Args:
        trained_row_count: rows of the embeddings that came with the adapter, those of the base when
            none came.
    Raises:
        Fault: EXPORT_VOCABULARY_MISMATCH, which names the first tokens.
    """
    beyond = differences.beyond
    if trained_row_count != row_count or beyond:
        size = trained_row_count if trained_row_count != row_count else beyond[-1].number + 1
        texts = differences.added_texts
        added = f", with {_named(texts)} added" if texts else ""
        raise Fault(
            FaultCode.EXPORT_VOCABULARY_MISMATCH,
            f"The training resized the vocabulary from {row_count} to {size} tokens{added}; a GGUF "
            "of the base holds the tokens that the base has rows for.",
            base_row_count=row_count,
            trained_row_count=size,
            added_count=len(texts),
            tokens=_named(texts),
        )
    if conflicts := differences.conflicts:
        texts = [
            f"{_quoted(conflict.text)} ({conflict.number}): {conflict.reason}"
            for conflict in conflicts[:NAMED_TOKENS]
        ]
        raise Fault(
            FaultCode.EXPORT_VOCABULARY_MISMATCH,
            f"The training's tokenizer and the base's differ in {len(conflicts)} tokens: "
            f"{'; '.join(texts)}.",
            token_count=len(conflicts),
            tokens=_named([conflict.text for conflict in conflicts]),
            first_token=conflicts[0].number,
        )


def require_same_rules(trained: Mapping[str, object], base: Mapping[str, object]) -> None:
    """Refuses a tokenizer that splits texts by other rules than the base's.

    Raises:
        Fault: EXPORT_VOCABULARY_MISMATCH.
    """
    parts = sorted(name for name in {*trained, *base} if trained.get(name) != base.get(name))
    if parts:
        raise Fault(
            FaultCode.EXPORT_VOCABULARY_MISMATCH,
            "The training's tokenizer splits texts otherwise than the base's, by another "
            f"{' and another '.join(parts)}.",
            parts=", ".join(parts),
        )


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a `tokenizer_config.json` names."""
    found = {}
    for name in SPECIAL_KEYS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found


def special_ids(
    trained: Mapping[str, str],
    base: Mapping[str, str],
    *,
    known: Callable[[str], int | None],
    current: Mapping[str, int],
    row_count: int,
) -> dict[str, int]:
    """The metadata by which a GGUF has the training's special tokens, where it changed them.

    The base's end token still ends an answer, as a second one.

    Args:
        known: number of a token in the training's tokenizer.
        current: the numbers that the GGUF has so far, by key.
    Raises:
        Fault: EXPORT_VOCABULARY_MISMATCH for a token that the training's tokenizer does not have.
    """
    written: dict[str, int] = {}
    for name, text in trained.items():
        if base.get(name) == text:
            continue
        number = known(text)
        if number is None or number >= row_count:
            raise Fault(
                FaultCode.EXPORT_VOCABULARY_MISMATCH,
                f"The training's {name} is {_quoted(text)}, which is no token of the base.",
                tokens=_quoted(text),
                token_count=1,
            )
        key = SPECIAL_KEYS[name]
        if current.get(key) != number:
            written[key] = number
    if END_KEY in written and END_KEY in current and END_OF_TURN_KEY not in current:
        written[END_OF_TURN_KEY] = current[END_KEY]
    return written


def probes_of(text: str) -> list[str]:
    """Texts with a token in the places where runtimes may take it for something else."""
    return [
        text,
        f"x{text}y",
        f"x {text} y",
        f"{text}{text}",
        f"{text} {text}",
        f"\n{text}\n",
        f"x\n\n{text} y",
        text.swapcase(),
    ]


def unreadable(text: str, number: int) -> Fault:
    """The refusal of a token that llama.cpp does not find in texts as the training does."""
    return Fault(
        FaultCode.EXPORT_VOCABULARY_MISMATCH,
        f"llama.cpp finds the token {_quoted(text)} ({number}) in other places of a text than the "
        "training's tokenizer does.",
        tokens=_quoted(text),
        token_count=1,
        first_token=number,
    )


def _other_texts(trained: Tokens, base: Tokens, file: FileTokens) -> Iterator[Change | Conflict]:
    """Numbers that mean another text, and texts that only one side has."""
    if trained.ids == base.ids:
        return
    taken: set[int] = set()
    for text, number in trained.ids.items():
        if base.ids.get(text) == number:
            continue
        taken.add(number)
        if text in base.ids:
            reason = f"the base has it as {base.ids[text]}"
            yield Conflict(number=number, text=text, reason=reason)
        elif number >= len(file.texts) or file.is_spare(number):
            yield _new(number, text, trained)
        elif text != file.texts[number]:
            reason = f"the base has {_quoted(file.texts[number])} there"
            yield Conflict(number=number, text=text, reason=reason)
    for text, number in base.ids.items():
        if text not in trained.ids and number not in taken and number < len(file.texts):
            yield Conflict(number=number, text=text, reason="only the base has it")


def _other_flags(trained: Tokens, base: Tokens, file: FileTokens) -> Iterator[Change | Conflict]:
    """Tokens of both sides that are added otherwise, or that the base's conversion left out."""
    numbers = {*trained.added, *base.added}
    texts = [(text, number) for text, number in trained.ids.items() if number in numbers]
    for text, number in texts:
        flags, before = trained.added.get(number), base.added.get(number)
        if base.ids.get(text) != number or number >= len(file.texts):
            continue
        if flags is None and before is not None:
            reason = "the training splits it like any other text"
            yield Conflict(number=number, text=text, reason=reason)
        elif flags is not None and file.is_spare(number):
            yield _new(number, text, trained)
        elif flags is not None and flags != before:
            yield _reflagged(number, text, flags, before, file.kinds[number])


def _new(number: int, text: str, trained: Tokens) -> Change:
    flags = trained.added.get(number)
    kind = TokenKind.NORMAL if flags is None else _kind(flags)
    return Change(number=number, text=text, kind=kind, is_new=True)


def _reflagged(
    number: int, text: str, flags: Added, before: Added | None, kind: int
) -> Change | Conflict:
    """What a token needs that the training flags otherwise than the base."""
    if kind == TokenKind.BYTE:
        return Conflict(number=number, text=text, reason="the base has a byte there")
    is_same_kind = before is not None and before.special == flags.special
    if is_same_kind or kind in (TokenKind.UNKNOWN, _kind(flags)):
        return Change(number=number, text=text, kind=None)
    return Change(number=number, text=text, kind=_kind(flags))


def _kind(flags: Added) -> TokenKind:
    return TokenKind.CONTROL if flags.special else TokenKind.USER_DEFINED


def _looks_special(text: str) -> bool:
    return bool(_LOOKS_SPECIAL.fullmatch(text))


def _unwritable(changes: Iterable[Change], file: FileTokens) -> dict[int, Conflict]:
    """New tokens whose texts llama.cpp cannot hold: it ends at equal texts, and texts at a NUL."""
    new = [change for change in changes if change.is_new]
    if not new:
        return {}
    known = set(file.texts)
    found = {}
    for change in new:
        if change.number >= len(file.texts):
            continue
        if change.kind is TokenKind.NORMAL:
            reason = "the base has no merges for it"
        elif not change.text or "\0" in change.text:
            reason = "its text is not one that a GGUF can hold"
        elif change.text in known:
            reason = "the GGUF of the base has this text already"
        else:
            continue
        found[change.number] = Conflict(number=change.number, text=change.text, reason=reason)
    return found


def _quoted(text: str) -> str:
    shown = text if len(text) <= NAMED_CHARACTERS else text[: NAMED_CHARACTERS - 1] + "…"
    escaped = "".join(one if one.isprintable() else repr(one)[1:-1] for one in shown)
    return f'"{escaped}"'


def _named(texts: Sequence[str]) -> str:
    rest = f" and {len(texts) - NAMED_TOKENS} more" if len(texts) > NAMED_TOKENS else ""
    return ", ".join(map(_quoted, texts[:NAMED_TOKENS])) + rest
