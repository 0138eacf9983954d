"""The data of a run: every row encoded once, in memory, with tokenizer and template beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from corpus import chat
from corpus.labels import TrainOn as CorpusTrainOn
from corpus.labels import encode, encode_prompt
from corpus.samples import ChatSample, Message, Role, TextSample, iterate_samples
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import Base, DatasetFile, TrainPlan
from trainer.training.batches import Row
from trainer.training.speech import Prompt, end_tokens

Warn = Callable[[FaultCode, str], None]
# A warning names the first rows it is about; the count says how many there are.
ROWS_NAMED_MAX = 10
# Asked when the run names no prompts of its own.
DEFAULT_PROMPTS = (
    "Hello! Who are you?",
    "What can you help me with?",
    "Tell me something interesting in one sentence.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Encoded rows, and what is needed to read and write them.

    Attributes:
        rows: rows to train on.
        validation_rows: rows of a validation dataset; empty without one.
    """

    rows: tuple[Row, ...]
    validation_rows: tuple[Row, ...]
    tokenizer: Tokenizer
    template: chat.ChatTemplate
    prompts: tuple[Prompt, ...]

    @classmethod
    def prepare(cls, plan: TrainPlan, *, warn: Warn) -> Self:
        """Read, encode and count everything the run needs.

        Raises:
            Fault: the DATASET_ codes of `corpus`, DATASET_NO_TRAINED_TOKENS,
                MODEL_TOKENIZER_NOT_FOUND, MODEL_CHAT_TEMPLATE_INVALID.
        """
        tokenizer = load_tokenizer(plan.base)
        template = chat.load(Path(plan.base.folder))
        if template.is_fallback:
            warn(FaultCode.MODEL_CHAT_TEMPLATE_MISSING, chat.fallback_warning(plan.base.model_id))
        given = plan.validation.dataset if plan.validation else None
        return cls(
            rows=_encoded(plan, plan.datasets, tokenizer, template, warn),
            validation_rows=_encoded(plan, [given], tokenizer, template, warn) if given else (),
            tokenizer=tokenizer,
            template=template,
            prompts=tuple(
                Prompt(text=text, ids=tuple(encode_prompt([_asked(text)], template, tokenizer)))
                for text in plan.sample_prompts or DEFAULT_PROMPTS
            ),
        )

    @property
    def special_tokens(self) -> frozenset[str]:
        """What the tokenizer declares special."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def end_ids(self, model: Any) -> frozenset[int]:
        """Tokens that end an answer."""
        added = self.tokenizer.get_added_tokens_decoder()
        special_ids = frozenset(index for index, token in added.items() if token.special)
        return frozenset(end_tokens(model, [row.labels for row in self.rows[:1]], special_ids))


def load_tokenizer(base: Base) -> Tokenizer:
    """The fast tokenizer of the base model, converted where the model ships an older form.

    Raises:
        Fault: MODEL_TOKENIZER_NOT_FOUND.
    """
    folder = Path(base.folder)
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        converted = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        tokenizer: Tokenizer = converted.backend_tokenizer
    except Exception as error:
        raise Fault(
            FaultCode.MODEL_TOKENIZER_NOT_FOUND,
            f"Tokenizer not found for model {base.model_id}",
            model=base.model_id,
        ) from error
    else:
        return tokenizer


def _encoded(
    plan: TrainPlan,
    datasets: Sequence[DatasetFile],
    tokenizer: Tokenizer,
    template: chat.ChatTemplate,
    warn: Warn,
) -> tuple[Row, ...]:
    """All datasets one after another; rows without a trained token are left out and counted."""
    rows: list[Row] = []
    truncated: list[int] = []
    silent: list[int] = []
    for dataset in datasets:
        for number, sample in iterate_samples(Path(dataset.path), Format(dataset.format)):
            assert isinstance(sample, ChatSample | TextSample)
            encoded = encode(
                sample,
                template,
                tokenizer,
                max_tokens=plan.max_sequence_tokens,
                train_on=CorpusTrainOn(plan.train_on.value),
            )
            if encoded.truncated:
                truncated.append(number)
            if encoded.trained_token_count:
                rows.append(Row(ids=encoded.input_ids, labels=encoded.labels))
            else:
                silent.append(number)
    if truncated:
        warn(
            FaultCode.DATASET_ROW_INVALID,
            f"{len(truncated)} rows are longer than {plan.max_sequence_tokens} tokens and were "
            f"truncated: {_named(truncated)}",
        )
    if silent:
        warn(
            FaultCode.DATASET_NO_TRAINED_TOKENS,
            f"{len(silent)} rows hold nothing to learn and were left out: {_named(silent)}",
        )
    if not rows:
        raise Fault(FaultCode.DATASET_NO_TRAINED_TOKENS)
    return tuple(rows)


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:ROWS_NAMED_MAX]))
    return f"row {shown}" if len(numbers) <= ROWS_NAMED_MAX else f"row {shown}, …"


def _asked(text: str) -> Message:
    return Message(role=Role.USER, content=text)
