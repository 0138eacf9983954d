"""The data of a run: every row encoded once, in memory, with tokenizer and template beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from corpus import chat
from corpus.labels import encode_prompt
from corpus.samples import Message, Role
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import Base, TrainPlan
from trainer.training.batches import Example
from trainer.training.reading import Reader, Warn
from trainer.training.speech import Prompt, end_tokens

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
        examples: what is trained on.
        validation_examples: those of a validation dataset; empty without one.
    """

    examples: tuple[Example, ...]
    validation_examples: tuple[Example, ...]
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
            examples=Reader(plan, tokenizer, template, warn).read(plan.datasets),
            validation_examples=(
                Reader(plan, tokenizer, template, warn).read([given]) if given else ()
            ),
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
        labels = [example.rows[0].labels for example in self.examples[:1]]
        return frozenset(end_tokens(model, labels, special_ids))


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


def _asked(text: str) -> Message:
    return Message(role=Role.USER, content=text)
