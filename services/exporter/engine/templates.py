"""The chat template of an export: embedded, translated, and proven token by token."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from corpus import chat
from exporter.domain import go_template, template_synthesis
from exporter.domain.bundle import quoted, stop_words
from exporter.domain.gguf_format import (
    Header,
    Metadata,
    bool_value,
    string_value,
)
from exporter.domain.template_probes import (
    Conversation,
    Probed,
    chat_turns,
    ollama_data,
    rendered_groups,
    said,
)
from exporter.domain.vocabulary import CORNER_TEXTS
from exporter.engine import vocabulary
from exporter.engine.llama_model import LlamaModel
from exporter.engine.proof import Segment
from exporter.engine.weights import GgufFile
from lexicon.faults import Fault, FaultCode

TEMPLATE_KEY: Final = "tokenizer.chat_template"
ADD_BEGIN_KEY: Final = "tokenizer.ggml.add_bos_token"
# An answer may take twice as long as the reference's, and this many tokens in any case, to end.
ANSWER_TOKENS: Final = 64

SPACE_PREFIX_KEY: Final = "tokenizer.ggml.add_space_prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTemplate:
    """The template that the adapter was trained with, and how it looks to Ollama.

    `go` is None when no TEMPLATE prints the same; `outcomes` says of what, by key of a group of
    probes. `forbids_begin` says that the training saw no begin token, although runtimes of the base
    would put one before every prompt.
    """

    template: chat.ChatTemplate
    tokenizer: Tokenizer
    go: str | None
    outcomes: Mapping[str, Probed]
    stops: Sequence[str]
    forbids_begin: bool

    def render(self, conversation: Conversation, add_prompt: bool) -> str:
        return _render(self.template, conversation, add_prompt)

    def question(self, text: str) -> str:
        """The prompt of a conversation that begins with this text."""
        return self.render(said(("user", text)), True)

    def ids(self, text: str) -> list[int]:
        """Token ids as the training saw them."""
        encoded: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return encoded

    def metadata(self) -> list[Metadata]:
        """What the GGUF must carry of it."""
        entries = [string_value(TEMPLATE_KEY, self.template.source)]
        if self.forbids_begin:
            entries.append(bool_value(ADD_BEGIN_KEY, False))
        return entries


def read_template(adapter_folder: Path, base: Header, tokenizer: Tokenizer) -> TrainedTemplate:
    """Reads the template that is stored with the adapter.

    Args:
        tokenizer: the adapter's own.
    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID.
    """
    template = chat.load(adapter_folder)
    begin = begin_token(base)
    forbids_begin = not _render(template, said(("user", "x")), True).startswith(begin)
    found = template_synthesis.synthesise(
        lambda conversation, add_prompt: _render(template, conversation, add_prompt),
        begin_token="" if forbids_begin else begin,
        end_token=template.eos_token or "",
        is_sayable=lambda source: quoted(source, '"""') is not None,
    )
    special = [
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    ]
    return TrainedTemplate(
        template=template,
        tokenizer=tokenizer,
        go=found.source,
        outcomes=found.outcomes,
        stops=stop_words(
            assistant_end=found.assistant_end,
            special_tokens=special,
            end_tokens=[template.eos_token or ""],
        ),
        forbids_begin=forbids_begin,
    )


def begin_token(base: Header) -> str:
    """The text of the token that runtimes put before every prompt, empty when they put none."""
    tokens, add = (
        base.metadata.get("tokenizer.ggml.tokens"),
        base.metadata.get(ADD_BEGIN_KEY),
    )
    begin_id = base.number("tokenizer.ggml.bos_token_id", -1)
    is_sentencepiece = base.text("tokenizer.ggml.model") == "llama"
    adds = bool(add.scalar) if add else is_sentencepiece
    if not adds or tokens is None or begin_id < 0:
        return ""
    return str(tokens.items[begin_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateEvidence:
    """Texts whose tokens were compared; `texts_different` counts corner texts that differ."""

    texts_equal: int
    texts_different: int


def fitting_space_prefix(base: Header, trained: TrainedTemplate, scratch: Path) -> list[Metadata]:
    """Metadata that makes llama.cpp treat spaces after special tokens as the training did.

    Checkpoints seldom say whether their sentencepiece vocabulary takes a space before a text, and
    converters guess. Here both ways are tried, and what gives the training's tokens is written.
    """
    if base.text("tokenizer.ggml.model") != vocabulary.SENTENCEPIECE:
        return []
    probes = [(trained.ids(text), text) for _, text in template_synthesis.probes_of(trained.render)]
    for change in ([], [bool_value(SPACE_PREFIX_KEY, False)], [bool_value(SPACE_PREFIX_KEY, True)]):
        with vocabulary.opened(base, change, scratch) as model:
            if all(model.tokenize(text) == wanted for wanted, text in probes):
                return change
    return []


def prove_template(
    path: Path, trained: TrainedTemplate, segments: Sequence[Segment], model: LlamaModel
) -> TemplateEvidence:
    """Compares token ids three ways and with the reference.

    The three: training tokenizer on the training template; llama.cpp on the template inside the
    GGUF; llama.cpp on the Modelfile's template, with the begin token that runtimes add.

    Raises:
        Fault: EXPORT_TEMPLATE_MISMATCH.
    """
    with GgufFile(path) as file:
        embedded_source = file.header.text(TEMPLATE_KEY)
        is_sentencepiece = file.header.text("tokenizer.ggml.model") == vocabulary.SENTENCEPIECE
    if embedded_source is None:
        raise Fault(FaultCode.EXPORT_TEMPLATE_MISMATCH, "The GGUF carries no chat template.")
    embedded = chat.ChatTemplate.compile(embedded_source, tokens=trained.template.tokens)
    equal = different = 0
    for probe, text, is_carried in _proven_probes(trained, is_sentencepiece=is_sentencepiece):
        wanted = trained.ids(text)
        shown = model.tokenize(_render(embedded, probe, True))
        _require_equal(wanted, shown, "the template in the GGUF")
        equal += 1
        if trained.go is not None and is_carried:
            printed = go_template.render(trained.go, ollama_data(probe))
            shown = model.tokenize(printed, add_special=True)
            _require_equal(wanted, shown, "the Modelfile's template")
            equal += 1
    for corner in CORNER_TEXTS:
        text = trained.question(corner)
        wanted, shown = trained.ids(text), model.tokenize(text)
        # Conversions of sentencepiece vocabularies are known to differ over runs of spaces.
        if not is_sentencepiece:
            _require_equal(wanted, shown, "the GGUF's tokenizer")
        equal += wanted == shown
        different += wanted != shown
    for segment in segments:
        _require_frame(trained, segment)
        equal += 1
    return TemplateEvidence(texts_equal=equal, texts_different=different)


def prove_end(model: LlamaModel, segments: Sequence[Segment]) -> bool | None:
    """Whether an answer of the model ends by itself; None when no reference answer did.

    Raises:
        Fault: EXPORT_TEMPLATE_MISMATCH when runtimes would not stop where the adapter stopped.
    """
    ended = [segment for segment in segments if _ends_itself(model, segment, segments)]
    if not ended:
        return None
    segment = min(ended, key=lambda candidate: len(candidate.tokens))
    budget = max(ANSWER_TOKENS, 2 * len(segment.scored))
    return model.ends_generation(model.answer(segment.prompt, max_tokens=budget)[-1])


def _ends_itself(model: LlamaModel, segment: Segment, segments: Sequence[Segment]) -> bool:
    """Whether the reference's answer ended with an end token, which the GGUF must know as one."""
    last = segment.tokens[-1]
    if model.ends_generation(last):
        return True
    # An answer cut at its length limit ends anywhere. Answers that all end alike, with a token that
    # none of them has before its end, ended themselves.
    are_ended = all(
        other.answer[-1] == last and last not in other.answer[:-1] for other in segments
    )
    if len(segments) > 2 and are_ended:
        raise Fault(
            FaultCode.EXPORT_TEMPLATE_MISMATCH,
            f"Answers end with token {last}, at which runtimes of the GGUF would not stop.",
            token=last,
        )
    return False


def _proven_probes(
    trained: TrainedTemplate, *, is_sentencepiece: bool
) -> Iterator[tuple[Conversation, str, bool]]:
    """Yields conversations with the text of the training, and whether the TEMPLATE carries them."""
    for group, texts in rendered_groups(trained.render):
        is_carried = trained.outcomes.get(group.key) is Probed.EQUAL
        if is_sentencepiece and group.has_outer_blanks:
            continue
        if group.is_required or is_carried:
            for conversation, text in texts:
                yield conversation, text, is_carried


def _render(template: chat.ChatTemplate, conversation: Conversation, add_prompt: bool) -> str:
    return template.render_turns(
        chat_turns(conversation), tools=conversation.tools, add_generation_prompt=add_prompt
    )


def _require_frame(trained: TrainedTemplate, segment: Segment) -> None:
    """The reference's prompt must be framed as the template frames a prompt."""
    word = "Sapphire question"
    frame = trained.question(word)
    head, found, tail = frame.partition(word)
    prompt: str = trained.tokenizer.decode(segment.prompt, skip_special_tokens=False)
    if (
        not found
        or not prompt.startswith(head.rstrip())
        or not prompt.rstrip().endswith(tail.strip())
    ):
        raise Fault(
            FaultCode.EXPORT_TEMPLATE_MISMATCH,
            "The chat template stored with the adapter is not the one that it was trained with.",
        )


def _require_equal(wanted: list[int], found: list[int], where: str) -> None:
    if wanted == found:
        return
    place = next(
        (
            index
            for index, pair in enumerate(zip(wanted, found, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(wanted), len(found)),
    )
    raise Fault(
        FaultCode.EXPORT_TEMPLATE_MISMATCH,
        f"The training and {where} give different tokens, first at position {place}.",
        position=place,
        training_tokens=str(wanted[place : place + 5]),
        export_tokens=str(found[place : place + 5]),
    )
