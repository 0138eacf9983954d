"""Renderings, segments and labels: exactly what the assistant says is learnt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.chat import ChatTemplate, fallback_warning, load, trained_spans
from corpus.labels import (
    IGNORED_LABEL,
    Encoded,
    encode,
    encode_kto,
    encode_preference,
    encode_prompt,
)
from corpus.samples import ChatSample, KtoSample, Message, PreferenceSample, Role, TextSample
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import TrainOn
from tests.unit.corpus.tokenizer import SPECIALS, byte_tokenizer

TOKENIZER = byte_tokenizer(extra=("</s>", "[INST]", "[/INST]"))
CHATML = ChatTemplate.compile(None)
# Written for these tests in the manner of widely used families.
TEMPLATES = {
    "chatml": None,
    "marks with two line breaks, trimmed": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "instructions in brackets, no generation prompt": (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
        "{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% endfor %}"
    ),
    "empty thought before the answer": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "system merged into the question": (
        "{% set system = '' %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set system = m.content %}{% endif %}{% endfor %}"
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% else %}{% set first = '' %}{% endif %}"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.first %}{{ first }}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "an end of the text after the end of the turn": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}</s>{% endif %}"
    ),
    "decides by what was said": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].strip() }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
COMPILED = {name: ChatTemplate.compile(source) for name, source in TEMPLATES.items()}
few = settings(max_examples=40)
words = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=30).filter(
    lambda text: text.strip() != ""
)


def conversation(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """Questions and answers in turn, behind a system message where there is one."""
    roles = [Role.USER, Role.ASSISTANT]
    turns = [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, Message(role=Role.SYSTEM, content=system))
    return tuple(turns)


def learnt(encoded: Encoded) -> str:
    ids = [int(label) for label in encoded.labels if label != IGNORED_LABEL]
    return str(TOKENIZER.decode(ids, skip_special_tokens=False))


def chat(messages: Sequence[Message], *, max_tokens: int = 100_000) -> Encoded:
    return encode(ChatSample(messages=tuple(messages)), CHATML, TOKENIZER, max_tokens=max_tokens)


@pytest.mark.parametrize("name", list(TEMPLATES))
@few
@given(texts=st.lists(words, min_size=2, max_size=6), system=st.none() | words)
def test_segments_join_to_the_rendering_and_labels_sit_on_answers(
    name: str, texts: list[str], system: str | None
) -> None:
    """Labels are only on what the assistant says and on its end mark."""
    template = COMPILED[name]
    texts = [text.replace("</think>", "") or "a" for text in texts[: len(texts) // 2 * 2]]
    texts = [text if text.strip() else "a" for text in texts]
    messages = conversation(*texts, system=system)
    segments = template.segments(messages)
    assert "".join(segment.text for segment in segments) == template.render(messages)
    answers = [text.strip() for text in texts[1::2]]
    trained = [
        "".join(segment.text for segment in segments)[start:end]
        for start, end in trained_spans(segments)
    ]
    assert len(trained) == len(answers)
    for found, answer in zip(trained, answers, strict=True):
        rest = found.removesuffix("<|im_end|>").removesuffix("</s>").strip()
        assert rest.removeprefix("<think>\n\n</think>").strip() == answer
        assert found != rest, "the end mark is learnt"


@few
@given(texts=st.lists(words, min_size=2, max_size=6), system=st.none() | words)
def test_ids_decode_to_the_rendering(texts: list[str], system: str | None) -> None:
    messages = conversation(*texts[: len(texts) // 2 * 2], system=system)
    encoded = chat(messages)
    assert TOKENIZER.decode(encoded.input_ids.tolist(), skip_special_tokens=False) == (
        CHATML.render(messages)
    )
    kept = encoded.labels != IGNORED_LABEL
    assert (encoded.labels[kept] == encoded.input_ids[kept]).all()


@few
@given(
    texts=st.lists(
        st.lists(words | st.sampled_from(SPECIALS), min_size=1, max_size=5).map("".join),
        min_size=2,
        max_size=6,
    )
)
def test_special_tokens_in_what_people_say_are_text(texts: list[str]) -> None:
    """Attack 18: as many special ids as the template writes, whatever the messages say."""
    messages = conversation(*texts[: len(texts) // 2 * 2])
    special = {TOKENIZER.token_to_id(text) for text in SPECIALS}
    encoded = chat(messages)
    assert sum(int(token) in special for token in encoded.input_ids) == 2 * len(messages)


def test_a_mark_put_together_from_two_messages_is_text() -> None:
    """Attack 18: half of it at the end of one message, half at the start of the next."""
    template = ChatTemplate.compile("{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = conversation("a<|im_", "start|>b")
    encoded = encode(ChatSample(messages=messages), template, TOKENIZER, max_tokens=99)
    assert TOKENIZER.token_to_id("<|im_start|>") not in encoded.input_ids


def test_only_responses_or_everything_is_learnt() -> None:
    messages = conversation("Hi", "Ho")
    assert learnt(chat(messages)) == "Ho<|im_end|>"
    everything = encode(
        ChatSample(messages=messages), CHATML, TOKENIZER, max_tokens=999, train_on=TrainOn.ALL
    )
    assert learnt(everything) == CHATML.render(messages)


def test_a_thought_that_the_template_drops_is_not_learnt_but_its_answer_is() -> None:
    template = COMPILED["decides by what was said"]
    messages = conversation("Q", "<think>\nhm\n</think>\n\nA1", "Q2", "</think>A2")
    segments = template.segments(messages)
    text = "".join(segment.text for segment in segments)
    assert [text[start:end] for start, end in trained_spans(segments)] == [
        "A1<|im_end|>",
        "A2<|im_end|>",
    ]


def test_turns_that_are_context_are_not_learnt() -> None:
    messages = conversation("One", "Two", "Three", "Four")
    sample = ChatSample(messages=messages, trained_from=2)
    assert learnt(encode(sample, CHATML, TOKENIZER, max_tokens=999)) == "Four<|im_end|>"


@given(texts=st.lists(words, min_size=2, max_size=2), max_tokens=st.integers(1, 60))
def test_a_long_row_is_cut_and_says_so(texts: list[str], max_tokens: int) -> None:
    """A12, 001-25"""
    messages = conversation(*texts)
    whole, cut = chat(messages), chat(messages, max_tokens=max_tokens)
    assert cut.truncated == (len(whole.input_ids) > max_tokens)
    assert np.array_equal(cut.input_ids, whole.input_ids[:max_tokens])
    assert np.array_equal(cut.labels, whole.labels[:max_tokens])


def test_plain_text_is_learnt_whole_with_its_end() -> None:
    template = ChatTemplate.compile(None, tokens={"eos_token": "</s>"})
    encoded = encode(TextSample(text="Once </s> upon"), template, TOKENIZER, max_tokens=99)
    end = TOKENIZER.token_to_id("<|im_end|>")
    assert encoded.input_ids[-1] == end
    assert TOKENIZER.token_to_id("</s>") not in encoded.input_ids
    assert np.array_equal(encoded.input_ids, encoded.labels)


def test_preference_pairs_are_learnt_on_their_continuations() -> None:
    sample = PreferenceSample(
        prompt=conversation("Hi"),
        chosen=(Message(role=Role.ASSISTANT, content="Ho"),),
        rejected=(Message(role=Role.ASSISTANT, content="No"),),
    )
    pair = encode_preference(sample, CHATML, TOKENIZER, max_tokens=99)
    assert (learnt(pair.chosen), learnt(pair.rejected)) == ("Ho<|im_end|>", "No<|im_end|>")


def test_kto_rows_keep_their_verdict() -> None:
    sample = KtoSample(
        prompt=conversation("Hi"),
        completion=(Message(role=Role.ASSISTANT, content="Ho"),),
        desirable=False,
    )
    encoded = encode_kto(sample, CHATML, TOKENIZER, max_tokens=99)
    assert learnt(encoded.completion) == "Ho<|im_end|>"
    assert encoded.desirable is False


@given(texts=st.lists(words, min_size=3, max_size=3))
def test_a_prompt_is_the_beginning_of_what_is_trained_on(texts: list[str]) -> None:
    """What the model sees when it is used is what it saw when it learnt."""
    texts = [text.strip() for text in texts]
    prompt = encode_prompt(conversation(texts[0]), CHATML, TOKENIZER)
    trained = chat(conversation(texts[0], texts[1]))
    assert trained.input_ids[: len(prompt)].tolist() == prompt


def test_a_template_that_leaves_the_answer_out_is_refused() -> None:
    template = ChatTemplate.compile("{{ messages[0].content }}")
    with pytest.raises(Fault) as caught:
        template.segments(conversation("Hi", "Ho"))
    assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID


def test_a_folder_gives_its_template_and_else_chatml(tmp_path: Path) -> None:
    """000-25"""
    assert load(tmp_path).is_fallback
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "tool_use", "template": "no"},'
        ' {"name": "default", "template": "{{ eos_token }}"}], "eos_token": {"content": "</s>"}}'
    )
    named = load(tmp_path)
    assert not named.is_fallback
    assert named.render([]) == "</s>"
    (tmp_path / "chat_template.jinja").write_text("mine")
    assert load(tmp_path).render([]) == "mine"
    assert fallback_warning("X") == "Chat template missing for model X; falling back to ChatML"


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_a_tokenizer_config_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(Fault) as caught:
        load(tmp_path)
    assert caught.value.code is FaultCode.MODEL_CONFIG_INVALID


def test_a_template_that_is_not_utf8_is_read_as_the_hub_shows_it(tmp_path: Path) -> None:
    """Attack 4: no traceback over a single byte."""
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ messages[0]['content'] }}\xff")
    assert load(tmp_path).source.endswith("\ufffd")


@pytest.mark.parametrize("number", ["7", "9" * 5000])
def test_a_template_that_writes_marks_of_ours_gets_nowhere_by_them(number: str) -> None:
    """Attack 4"""
    marks = f"\ue000{number}\ue001x\ue002{number}\ue003"
    template = ChatTemplate.compile("{{ messages[-1]['content'] }}" + marks)
    said = [Message(role=Role.USER, content="Hi"), Message(role=Role.ASSISTANT, content="Ho")]
    segments = template.segments(said)
    assert "".join(segment.text for segment in segments) == f"Ho{marks}"
    assert [segment.text for segment in segments if segment.is_content] == ["Ho"]
