"""Dataset files as encoded examples, by the method that trains on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from tokenizers import Tokenizer

from corpus.chat import ChatTemplate
from corpus.labels import Encoded, TrainOn, encode, encode_kto, encode_preference
from corpus.samples import (
    ChatSample,
    KtoSample,
    PreferenceSample,
    Sample,
    TextSample,
    iterate_samples,
)
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import DatasetFile, Method, TrainPlan
from trainer.training.batches import Example, Row

Warn = Callable[[FaultCode, str], None]
# A warning names the first rows it is about; the count says how many there are.
ROWS_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Reader:
    """Encodes what a run trains on; tells of rows that were cut or left out."""

    plan: TrainPlan
    tokenizer: Tokenizer
    template: ChatTemplate
    warn: Warn

    def read(self, datasets: Sequence[DatasetFile]) -> tuple[Example, ...]:
        """All datasets one after another; examples without a trained token are left out.

        Raises:
            Fault: DATASET_NO_TRAINED_TOKENS when nothing is left, CONFIG_INVALID_SETTING when the
                method cannot learn from the format, the DATASET_ codes of `corpus`.
        """
        samples = [
            (number, sample)
            for dataset in datasets
            for number, sample in iterate_samples(Path(dataset.path), Format(dataset.format))
        ]
        examples: list[Example] = []
        truncated: list[int] = []
        silent: list[int] = []
        for number, encoded, example in self._encode_all(samples):
            if any(one.truncated for one in encoded):
                truncated.append(number)
            if all(row.trained_count for row in example.rows):
                examples.append(example)
            else:
                silent.append(number)
        self._tell(truncated, silent)
        if not examples:
            raise Fault(FaultCode.DATASET_NO_TRAINED_TOKENS)
        return tuple(examples)

    def _encode_all(
        self, samples: Sequence[tuple[int, Sample]]
    ) -> Iterator[tuple[int, list[Encoded], Example]]:
        for index, (number, sample) in enumerate(samples):
            if not _fits(sample, self.plan.method):
                raise Fault(
                    FaultCode.CONFIG_INVALID_SETTING,
                    f"Method {self.plan.method.value} cannot learn from row {number}, "
                    f"a {type(sample).__name__}",
                    row=number,
                )
            match sample:
                case ChatSample() | TextSample():
                    encoded = [self._supervised(sample)]
                    yield number, encoded, Example(rows=(_row(encoded[0]),))
                case PreferenceSample():
                    pair = encode_preference(
                        sample, self.template, self.tokenizer, max_tokens=self._max_tokens
                    )
                    encoded = [pair.chosen, pair.rejected]
                    yield number, encoded, Example(rows=(_row(pair.chosen), _row(pair.rejected)))
                case KtoSample():
                    other = samples[(index + 1) % len(samples)][1]
                    assert isinstance(other, KtoSample)
                    yield self._verdict(number, sample, other)
                case _:
                    assert_never(sample)

    def _supervised(self, sample: ChatSample | TextSample) -> Encoded:
        return encode(
            sample,
            self.template,
            self.tokenizer,
            max_tokens=self._max_tokens,
            train_on=TrainOn(self.plan.train_on.value),
        )

    def _verdict(
        self, number: int, sample: KtoSample, other: KtoSample
    ) -> tuple[int, list[Encoded], Example]:
        """An example of KTO; its mismatched row is its prompt with the next example's answer."""
        mixed = KtoSample(prompt=sample.prompt, completion=other.completion, desirable=True)
        own, foreign = (
            encode_kto(one, self.template, self.tokenizer, max_tokens=self._max_tokens).completion
            for one in (sample, mixed)
        )
        example = Example(
            rows=(_row(own),), is_desirable=sample.desirable, mismatched=_row(foreign)
        )
        return number, [own], example

    @property
    def _max_tokens(self) -> int:
        return self.plan.max_sequence_tokens

    def _tell(self, truncated: Sequence[int], silent: Sequence[int]) -> None:
        if truncated:
            self.warn(
                FaultCode.DATASET_ROW_INVALID,
                f"{len(truncated)} rows are longer than {self._max_tokens} tokens and were "
                f"truncated: {_named(truncated)}",
            )
        if silent:
            self.warn(
                FaultCode.DATASET_NO_TRAINED_TOKENS,
                f"{len(silent)} rows hold nothing to learn and were left out: {_named(silent)}",
            )


def _fits(sample: Sample, method: Method) -> bool:
    match method:
        case Method.SFT:
            return isinstance(sample, ChatSample | TextSample)
        case Method.KTO:
            return isinstance(sample, KtoSample)
        case Method.DPO | Method.ORPO | Method.SIMPO:
            return isinstance(sample, PreferenceSample)
        case _:
            assert_never(method)


def _row(encoded: Encoded) -> Row:
    return Row(ids=encoded.input_ids, labels=encoded.labels)


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:ROWS_NAMED_MAX]))
    return f"row {shown}" if len(numbers) <= ROWS_NAMED_MAX else f"row {shown}, …"
