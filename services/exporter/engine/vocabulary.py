"""The vocabulary of an export: the training's tokens in the base's GGUF, proven with llama.cpp."""

import filecmp
import mmap
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tokenizers import Tokenizer

from exporter.domain import vocabulary
from exporter.domain.adapter import Adapter
from exporter.domain.gguf_format import (
    Header,
    Metadata,
    Scalar,
    encode_header,
    uint32_value,
    with_items,
)
from exporter.domain.layout import Placement
from exporter.domain.token_cuts import differ_in_spaces_only
from exporter.domain.vocabulary import Change, Differences, FileTokens, TokenKind, Tokens
from exporter.engine.base import BaseModel
from exporter.engine.llama_model import LlamaModel
from exporter.engine.proof import Segment
from exporter.engine.tokenizer_file import (
    SETTINGS_NAME,
    SPLITTING,
    TOKENIZER_NAME,
    added_of,
    read_rules,
    read_tokenizer,
    read_tokens,
    tokens_of,
)
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json
from lexicon.faults import Fault, FaultCode

TEXTS_KEY: Final = "tokenizer.ggml.tokens"
KINDS_KEY: Final = "tokenizer.ggml.token_type"
SCORES_KEY: Final = "tokenizer.ggml.scores"
MODEL_KEY: Final = "tokenizer.ggml.model"
# The kind of vocabulary that llama.cpp calls so: sentencepiece.
SENTENCEPIECE: Final = "llama"
# What the converter gives added tokens of a sentencepiece vocabulary.
ADDED_SCORE: Final = -1000.0

# Tensors with a row for each token, by their names in a GGUF.
_BY_TOKEN: Final = ("token_embd.weight", "output.weight")
# What a checkpoint whose embeddings are both input and output does not hold.
_HEAD: Final = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedVocabulary:
    """The tokenizer of the training, and the header of the base with its tokens in it.

    `changes` are the tokens that the training has otherwise than the base.
    """

    tokenizer: Tokenizer
    header: Header
    changes: tuple[Change, ...]

    @property
    def written(self) -> list[str]:
        """The tokens that were written into the file."""
        return [change.text for change in self.changes if change.kind is not None]

    def ids(self, text: str) -> list[int]:
        """Token ids as the training saw them."""
        encoded: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return encoded

    def reads_the_same(self, text: str, model: LlamaModel) -> bool:
        """Whether llama.cpp gives a text the training's tokens."""
        return model.tokenize(text) == self.ids(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvidence:
    """Texts that llama.cpp cut like the training, and those that only spaces or accents part."""

    texts_equal: int
    texts_different: int


def read_vocabulary(
    adapter_folder: Path,
    base: BaseModel,
    gguf: GgufFile,
    *,
    adapter: Adapter,
    weights: SafetensorsFile,
    scratch: Path,
) -> TrainedVocabulary:
    """Compares the training's tokens with the base's, and writes what it added into the header.

    Args:
        scratch: a folder for files that are deleted afterwards.
    Raises:
        Fault: EXPORT_ADAPTER_MISSING when the adapter came without a tokenizer,
            EXPORT_VOCABULARY_MISMATCH when a GGUF of the base cannot hold its tokens, or when the
            vocabulary was resized; MODEL_WEIGHTS_INVALID.
    """
    tokenizer = read_tokenizer(adapter_folder)
    own, theirs = base.folder / TOKENIZER_NAME, adapter_folder / TOKENIZER_NAME
    is_same = own.is_file() and filecmp.cmp(own, theirs, shallow=False)
    file = _file_tokens(gguf.header)
    differences = _differences(tokenizer, own, file, is_same=is_same)
    row_count = len(file.texts)
    rows = _trained_rows(adapter, weights, base.placements())
    vocabulary.require_expressible(
        differences,
        row_count=row_count,
        trained_row_count=next((count for count in rows if count != row_count), row_count),
    )
    if own.is_file() and not is_same:
        rules, known = read_rules(theirs), read_rules(own)
        if _splits_alike(tokenizer, gguf.header, scratch):
            known |= {part: rules[part] for part in SPLITTING.values()}
        vocabulary.require_same_rules(rules, known)
    special = vocabulary.special_ids(
        vocabulary.special_tokens(read_json(adapter_folder / SETTINGS_NAME)),
        vocabulary.special_tokens(base.settings(SETTINGS_NAME)),
        known=tokenizer.token_to_id,
        current=_special_ids(gguf.header),
        row_count=row_count,
    )
    for change in differences.changes:
        _require_shown_as_written(change, tokenizer, file)
    entries = [
        *_written(gguf.header, differences.changes),
        *(uint32_value(key, number) for key, number in special.items()),
    ]
    metadata = {**gguf.header.metadata, **{entry.key: entry for entry in entries}}
    return TrainedVocabulary(
        tokenizer=tokenizer,
        header=replace(gguf.header, metadata=MappingProxyType(metadata)),
        changes=differences.changes,
    )


def _splits_alike(tokenizer: Tokenizer, header: Header, scratch: Path) -> bool:
    """Whether llama.cpp cuts texts as the training does, whatever the base says of normalizing.

    transformers replaces normalizer and pre-tokenizer of some model types by its own when it reads
    a tokenizer, for the training as for the conversion of the base.
    """
    with opened(header, [], scratch) as model:
        return all(
            model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids
            for text in vocabulary.CORNER_TEXTS
        )


def require_readable(
    trained: TrainedVocabulary, metadata: Sequence[Metadata], scratch: Path
) -> None:
    """Proves ahead of the merge that llama.cpp finds the changed tokens where the training does.

    Args:
        metadata: what the file will have beside the header.
    Raises:
        Fault: EXPORT_VOCABULARY_MISMATCH with the token.
    """
    if trained.changes:
        with opened(trained.header, metadata, scratch) as model:
            _require_probes(trained, model)


def prove_texts(
    trained: TrainedVocabulary, segments: Sequence[Segment], model: LlamaModel
) -> TextEvidence:
    """Tokenises the reference's conversations as texts, and texts with the changed tokens.

    What an adapter generated need not be the usual cut of its text. So the text is cut again, by
    the training's tokenizer and by llama.cpp; for a prompt that the former cuts as it was fed, this
    says that llama.cpp feeds the same.

    Raises:
        Fault: EXPORT_VOCABULARY_MISMATCH.
    """
    _require_probes(trained, model)
    equal = different = 0
    for index, segment in enumerate(segments):
        for tokens in (segment.prompt, segment.tokens):
            text: str = trained.tokenizer.decode(tokens, skip_special_tokens=False)
            is_equal = _require_same_text(trained, text, model, index=index)
            equal += is_equal
            different += not is_equal
    return TextEvidence(texts_equal=equal, texts_different=different)


@contextmanager
def opened(header: Header, metadata: Sequence[Metadata], scratch: Path) -> Iterator[LlamaModel]:
    """llama.cpp's tokenizer of a header, with some entries of its metadata changed."""
    changed = {**header.metadata, **{entry.key: entry for entry in metadata}}
    content = encode_header(list(changed.values()), [], alignment=header.alignment)
    with (
        _as_file(content, scratch) as path,
        LlamaModel(path, thread_count=1, vocabulary_only=True) as model,
    ):
        yield model


def _differences(
    tokenizer: Tokenizer, own: Path, file: FileTokens, *, is_same: bool
) -> Differences:
    """What the training's tokens do not share with the base's, of which `own` is the tokenizer."""
    if is_same:
        trained = known = _spare_tokens(tokenizer, file)
    else:
        trained = tokens_of(tokenizer)
        known = read_tokens(own) if own.is_file() else vocabulary.tokens_of_file(file, trained)
    return vocabulary.compare(trained, known, file)


def _file_tokens(header: Header) -> FileTokens:
    texts, kinds = header.metadata.get(TEXTS_KEY), header.metadata.get(KINDS_KEY)
    if texts is None or kinds is None:
        raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, "The GGUF of the base has no vocabulary.")
    return FileTokens(
        texts=[str(text) for text in texts.items], kinds=[int(kind) for kind in kinds.items]
    )


def _spare_tokens(tokenizer: Tokenizer, file: FileTokens) -> Tokens:
    """The tokens of a tokenizer that the file has no text for; all others are known to be equal."""
    spare = (number for number in range(len(file.texts)) if file.is_spare(number))
    texts = {number: tokenizer.id_to_token(number) for number in spare}
    ids = {text: number for number, text in texts.items() if text is not None}
    return Tokens(ids=ids, added=added_of(tokenizer) if ids else {})


def _trained_rows(
    adapter: Adapter, weights: SafetensorsFile, placements: Mapping[str, Placement]
) -> list[int]:
    """Rows of the adapter's tensors that have one for each token."""
    names = {name for name, placement in placements.items() if placement.tensor in _BY_TOKEN}
    names.add(_HEAD)
    shapes = {
        target: weights.tensors[name].shape
        for target, name in (*adapter.base_copies.items(), *adapter.replacements.items())
    }
    rows = [shape[0] for target, shape in shapes.items() if target in names and shape]
    for delta in adapter.deltas:
        if delta.target in names and delta.is_embedding:
            rows.append(weights.tensors[delta.a].shape[1])
        elif delta.target in names:
            rows.append(weights.tensors[delta.b].shape[0])
    return rows


def _special_ids(header: Header) -> dict[str, int]:
    keys = (*vocabulary.SPECIAL_KEYS.values(), vocabulary.END_OF_TURN_KEY)
    return {key: header.number(key) for key in keys if key in header.metadata}


def _require_shown_as_written(change: Change, tokenizer: Tokenizer, file: FileTokens) -> None:
    """A plain piece that is now added is shown by its text, which may be spelled for merging."""
    if change.is_new or change.kind is None or file.kinds[change.number] != TokenKind.NORMAL:
        return
    if tokenizer.decode([change.number], skip_special_tokens=False) != change.text:
        raise vocabulary.unreadable(change.text, change.number)


def _written(header: Header, changes: Sequence[Change]) -> Iterator[Metadata]:
    """The arrays of the vocabulary with the changes in them."""
    texts: dict[int, Scalar] = {each.number: each.text for each in changes if each.is_new}
    kinds: dict[int, Scalar] = {
        each.number: int(each.kind) for each in changes if each.kind is not None
    }
    scores: dict[int, Scalar] = dict.fromkeys(texts, ADDED_SCORE)
    for key, values in ((TEXTS_KEY, texts), (KINDS_KEY, kinds), (SCORES_KEY, scores)):
        if values and key in header.metadata:
            yield with_items(header.metadata[key], values)


def _require_probes(trained: TrainedVocabulary, model: LlamaModel) -> None:
    for change in trained.changes:
        for text in vocabulary.probes_of(change.text):
            wanted, found = trained.ids(text), model.tokenize(text)
            if wanted != found and not _is_about_spaces(trained, wanted, found):
                raise vocabulary.unreadable(change.text, change.number)


def _require_same_text(
    trained: TrainedVocabulary, text: str, model: LlamaModel, *, index: int
) -> bool:
    wanted, found = trained.ids(text), model.tokenize(text)
    if wanted == found:
        return True
    # llama.cpp does not compose accents, whatever the model.
    composed = unicodedata.normalize("NFC", text)
    if _is_about_spaces(trained, wanted, found) or (
        composed != text and trained.reads_the_same(composed, model)
    ):
        return False
    pairs = enumerate(zip(wanted, found, strict=False))
    shorter = min(len(wanted), len(found))
    place = next((place for place, pair in pairs if pair[0] != pair[1]), shorter)
    raise Fault(
        FaultCode.EXPORT_VOCABULARY_MISMATCH,
        f"llama.cpp reads the text of held-out conversation {index + 1} otherwise than the "
        f"training's tokenizer, first at token {place}.",
        conversation=index + 1,
        position=place,
        training_tokens=str(wanted[place : place + 5]),
        export_tokens=str(found[place : place + 5]),
    )


def _is_about_spaces(
    trained: TrainedVocabulary, wanted: Sequence[int], found: Sequence[int]
) -> bool:
    """Whether a sentencepiece vocabulary is only known to differ so."""
    if trained.header.text(MODEL_KEY) != SENTENCEPIECE:
        return False
    added = trained.tokenizer.get_added_tokens_decoder()

    def piece(number: int) -> str | None:
        return None if number in added else trained.tokenizer.id_to_token(number)

    return differ_in_spaces_only(wanted, found, piece=piece)


@contextmanager
def _as_file(content: bytes, scratch: Path) -> Iterator[Path]:
    """A file of that content: in memory where the system has such, in the folder elsewhere."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("vocabulary"), "r+b") as file:
            file.truncate(len(content))
            with mmap.mmap(file.fileno(), len(content)) as pages:
                pages[:] = content
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    path = scratch / "vocabulary.gguf"
    path.write_bytes(content)
    try:
        yield path
    finally:
        path.unlink()
