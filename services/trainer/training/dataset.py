"""The data of a run: every row encoded once, in memory, with tokenizer and template beside it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from corpus import chat
from corpus.labels import (
    Encoded,
    encode,
    encode_kto,
    encode_preference,
    encode_prompt,
    unbounded,
)
from corpus.samples import (
    ChatSample,
    KtoSample,
    Message,
    PreferenceSample,
    Role,
    Sample,
    TextSample,
    iterate_samples,
)
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import DEFAULT_PROMPTS, Method
from trainer.domain.plan import Base, DataPlan, DatasetFile, Objective, verdict_weights
from trainer.training.batches import Example, KtoExample, Pair, Row
from trainer.training.generation import Prompt, end_tokens

Warn = Callable[[FaultCode, str], None]
# A warning names the first rows it is about; the count says how many there are.
ROWS_NAMED_MAX = 10
# Encoded rows that are kept for runs to come: some 30 million tokens.
KEPT_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How a base model reads: its tokenizer and its chat template."""

    tokenizer: Tokenizer
    template: chat.ChatTemplate

    @classmethod
    def load(cls, base: Base) -> Self:
        """The reader of the model in the folder.

        Raises:
            Fault: MODEL_TOKENIZER_NOT_FOUND, MODEL_CHAT_TEMPLATE_INVALID.
        """
        return cls(tokenizer=load_tokenizer(base), template=chat.load(Path(base.folder)))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """Datasets as examples, and the warnings about them."""

    examples: tuple[Example, ...]
    warnings: tuple[tuple[FaultCode, str], ...]

    @property
    def size_bytes(self) -> int:
        """Memory of the token ids and labels."""
        rows = (row for example in self.examples for row in example.sequences)
        return sum(row.ids.nbytes + row.labels.nbytes for row in rows)


class DatasetCache:
    """Readers and encoded datasets of the runs before, found again by the hashes of their files.

    A dataset without a hash is read again each time. The least recently used goes first.
    """

    def __init__(self, *, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._readers: dict[str, Reader] = {}
        self._rows: OrderedDict[Hashable, EncodedRows] = OrderedDict()

    def reader(self, base: Base) -> Reader:
        """The base model's reader; only that of the latest base is kept."""
        if base.digest not in self._readers:
            self._readers = {base.digest: Reader.load(base)}
        return self._readers[base.digest]

    def rows(self, key: Hashable, make: Callable[[], EncodedRows]) -> EncodedRows:
        """The rows under `key`, made when they are not there; None as key keeps nothing."""
        if key is None:
            return make()
        if key not in self._rows:
            self._rows[key] = make()
        self._rows.move_to_end(key)
        found = self._rows[key]
        while sum(rows.size_bytes for rows in self._rows.values()) > self._bytes_max:
            self._rows.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Encoded rows, and what is needed to read and write them.

    Attributes:
        rows: rows to train on, as the method sees them.
        validation_rows: rows of a validation dataset; empty without one.
    """

    rows: tuple[Example, ...]
    validation_rows: tuple[Example, ...]
    tokenizer: Tokenizer
    template: chat.ChatTemplate
    prompts: tuple[Prompt, ...]

    @classmethod
    def prepare(
        cls,
        base: Base,
        data: DataPlan,
        objective: Objective,
        *,
        warn: Warn,
        dataset_cache: DatasetCache | None = None,
    ) -> Self:
        """Read, encode and count everything the run needs.

        Args:
            dataset_cache: what earlier runs of this process have read.
        Raises:
            Fault: the DATASET_ codes of `corpus`, DATASET_NO_TRAINED_TOKENS,
                MODEL_TOKENIZER_NOT_FOUND, MODEL_CHAT_TEMPLATE_INVALID, CONFIG_INVALID_SETTING when
                the method does not learn from rows like these.
        """
        dataset_cache = dataset_cache or DatasetCache()
        reader = dataset_cache.reader(base)
        tokenizer, template = reader.tokenizer, reader.template
        if template.is_fallback:
            warn(FaultCode.MODEL_CHAT_TEMPLATE_MISSING, chat.fallback_warning(base.model_id))
        given = data.validation.dataset if data.validation else None

        def read(datasets: tuple[DatasetFile, ...]) -> tuple[Example, ...]:
            """From the cache where it holds them; the warnings come anyway."""
            found = dataset_cache.rows(
                _key(base, datasets, objective), lambda: _encoded(datasets, objective, reader)
            )
            for code, text in found.warnings:
                warn(code, text)
            return found.examples

        rows = read(data.datasets)
        held = read((given,)) if given else ()
        weights = _weights(objective, rows)
        return cls(
            rows=_weighted(rows, weights),
            validation_rows=_weighted(held, weights),
            tokenizer=tokenizer,
            template=template,
            prompts=tuple(
                Prompt(text=text, ids=tuple(encode_prompt([_asked(text)], template, tokenizer)))
                for text in data.sample_prompts or DEFAULT_PROMPTS
            ),
        )

    @property
    def special_tokens(self) -> frozenset[str]:
        """What the tokenizer declares special."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def end_ids(self, configured: frozenset[int]) -> frozenset[int]:
        """Tokens that end an answer: those that the model's files say, and the training's own."""
        added = self.tokenizer.get_added_tokens_decoder()
        special_ids = frozenset(index for index, token in added.items() if token.special)
        labels = [row.sequences[0].labels for row in self.rows[:1]]
        return configured | end_tokens(labels, special_ids)


def load_tokenizer(base: Base) -> Tokenizer:
    """The fast tokenizer of the base model, converted where the model ships an older form.

    Raises:
        Fault: MODEL_TOKENIZER_NOT_FOUND.
    """
    folder = Path(base.folder)
    try:
        if (folder / "tokenizer.json").is_file():
            return unbounded(Tokenizer.from_file(str(folder / "tokenizer.json")))
        converted = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        tokenizer: Tokenizer = unbounded(converted.backend_tokenizer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A tokenizer's file that the library did not foresee makes it panic, which is no Exception.
        raise Fault(
            FaultCode.MODEL_TOKENIZER_NOT_FOUND,
            f"Tokenizer not found for model {base.model_id}",
            model=base.model_id,
        ) from error
    else:
        return tokenizer


def require_known_tokens(training_data: TrainingData, count: int) -> None:
    """Checks that the model has an embedding for every token that it is to read.

    A GPU that looks one up beyond the end fails for good, and the process with it; MLX reads
    whatever lies there.

    Args:
        count: embeddings of the model.
    Raises:
        Fault: MODEL_CONFIG_INVALID.
    """
    rows = (
        row
        for each in (*training_data.rows, *training_data.validation_rows)
        for row in each.sequences
    )
    asked = (max(prompt.ids, default=0) for prompt in training_data.prompts)
    largest = max(*(int(row.ids.max()) for row in rows), *asked, 0)
    if largest >= count:
        raise Fault(
            FaultCode.MODEL_CONFIG_INVALID,
            f"The tokenizer has a token {largest}, but the model only knows {count}: "
            "they do not belong together",
            token=largest,
            vocabulary_size=count,
        )


def _key(base: Base, datasets: tuple[DatasetFile, ...], objective: Objective) -> Hashable:
    """Everything that the encoded rows are a function of; None when a file's hash is not known."""
    if not all(dataset.digest for dataset in datasets):
        return None
    files = tuple((dataset.digest, dataset.format) for dataset in datasets)
    limit, train_on = objective.max_sequence_tokens, objective.train_on
    return base.digest, files, objective.method, limit, train_on


def _encoded(datasets: Sequence[DatasetFile], objective: Objective, reader: Reader) -> EncodedRows:
    """All datasets one after another.

    Rows without a trained token are left out and counted, and so are rows that the chat template
    refuses, as many do whose turns do not alternate: one such row in ten thousand is no reason to
    throw away the others. Where it refuses most of them, the data is not for this model.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID with the first row that is refused, when most are;
            DATASET_NO_TRAINED_TOKENS.
    """
    template, tokenizer = reader.template, reader.tokenizer
    warnings: list[tuple[FaultCode, str]] = []
    rows: list[Example] = []
    truncated: list[int] = []
    silent: list[int] = []
    refused: list[int] = []
    first_refusal: Fault | None = None
    for dataset in datasets:
        for number, sample in iterate_samples(Path(dataset.path), Format(dataset.format)):
            try:
                row, parts = _example(sample, objective, template, tokenizer)
            except Fault as fault:
                # Not what a busy machine may cause: every attempt must see the same rows.
                if not chat.is_refusal(fault):
                    raise
                first_refusal = first_refusal or chat.about_row(fault, dataset.name, number)
                refused.append(number)
                continue
            if any(part.truncated for part in parts):
                truncated.append(number)
            if all(part.trained_token_count for part in parts):
                rows.append(row)
            else:
                silent.append(number)
    if truncated:
        text = (
            f"{len(truncated)} rows are longer than {objective.max_sequence_tokens} tokens and "
            f"were truncated: {_named(truncated)}"
        )
        warnings.append((FaultCode.DATASET_ROW_INVALID, text))
    if silent:
        text = f"{len(silent)} rows hold nothing to learn and were left out: {_named(silent)}"
        warnings.append((FaultCode.DATASET_NO_TRAINED_TOKENS, text))
    if first_refusal is not None:
        if len(refused) >= len(rows):
            raise first_refusal
        text = f"{len(refused)} rows were left out: {_named(refused)}. {first_refusal.message}"
        warnings.append((FaultCode.MODEL_CHAT_TEMPLATE_INVALID, text))
    if not rows:
        raise Fault(FaultCode.DATASET_NO_TRAINED_TOKENS)
    return EncodedRows(examples=tuple(rows), warnings=tuple(warnings))


def _example(
    sample: Sample, objective: Objective, template: chat.ChatTemplate, tokenizer: Tokenizer
) -> tuple[Example, tuple[Encoded, ...]]:
    """What the method learns from a row, and the encoded texts in it."""
    limit, train_on = objective.max_sequence_tokens, objective.train_on
    match sample, objective.method:
        case ChatSample() | TextSample(), Method.SFT:
            one = encode(sample, template, tokenizer, max_tokens=limit, train_on=train_on)
            return _row(one), (one,)
        case PreferenceSample(), Method.DPO | Method.ORPO | Method.SIMPO:
            two = encode_preference(sample, template, tokenizer, max_tokens=limit)
            pair = Pair(chosen=_row(two.chosen), rejected=_row(two.rejected))
            return pair, (two.chosen, two.rejected)
        case KtoSample(), Method.KTO:
            text = encode_kto(sample, template, tokenizer, max_tokens=limit).completion
            return KtoExample(completion=_row(text), desirable=sample.desirable, weight=1.0), (
                text,
            )
        case _:
            raise Fault(
                FaultCode.CONFIG_INVALID_SETTING,
                f"Method {objective.method.upper()} does not learn from rows like these",
                method=objective.method.value,
            )


def _row(encoded: Encoded) -> Row:
    # Runs to come may read the same rows: nobody writes to them.
    encoded.input_ids.flags.writeable = encoded.labels.flags.writeable = False
    return Row(ids=encoded.input_ids, labels=encoded.labels)


def _weights(objective: Objective, rows: Sequence[Example]) -> tuple[float, float]:
    """Weights of (desirable, undesirable) rows; no other method than KTO has such."""
    if objective.preference is None:
        return (1.0, 1.0)
    verdicts = [row.desirable for row in rows if isinstance(row, KtoExample)]
    count = sum(verdicts)
    return verdict_weights(
        objective.preference, desirable_count=count, undesirable_count=len(verdicts) - count
    )


def _weighted(rows: Sequence[Example], weights: tuple[float, float]) -> tuple[Example, ...]:
    desirable, undesirable = weights
    return tuple(
        replace(row, weight=desirable if row.desirable else undesirable)
        if isinstance(row, KtoExample)
        else row
        for row in rows
    )


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:ROWS_NAMED_MAX]))
    return f"row {shown}" if len(numbers) <= ROWS_NAMED_MAX else f"row {shown}, …"


def _asked(text: str) -> Message:
    return Message(role=Role.USER, content=text)
