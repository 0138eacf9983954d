"""Modelfile templates of the known families: derived from the chat template, proven by printing.

The chat templates in tests/golden/exporter/templates print what those of the families print. Beside
each lies the TEMPLATE that follows from it; TUNESMITH_WRITE_GOLDEN=1 writes them anew.
"""

import os
from collections.abc import Sequence

import pytest

from corpus import chat
from corpus.samples import Message as ChatMessage
from corpus.samples import Role
from exporter.domain import go_template
from exporter.domain.template_synthesis import (
    Message,
    Render,
    derive_marks,
    go_source,
    ollama_data,
    prints_the_same,
    probes_of,
)
from tests.unit.exporter.places import ANVIL, REPOSITORY

FOLDER = REPOSITORY / "tests" / "golden" / "exporter" / "templates"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
BEGIN, END = "<s>", "</s>"


def renderer(source: str | None) -> Render:
    template = chat.ChatTemplate.compile(source, tokens={"bos_token": BEGIN, "eos_token": END})

    def render(messages: Sequence[Message], add_prompt: bool) -> str:
        made = [ChatMessage(role=Role(role), content=text) for role, text in messages]
        return template.render(made, add_generation_prompt=add_prompt)

    return render


def family(name: str) -> Render:
    return renderer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n"))


def derived(render: Render) -> str | None:
    marks = derive_marks(render, end_token=END)
    return go_source(marks.without_begin(BEGIN)) if marks else None


def test_the_families_of_the_catalog_are_here() -> None:
    wanted = {"llama3", "qwen2_5", "qwen3", "gemma2", "gemma3", "mistral_v3", "phi3", "smollm2"}
    assert wanted <= set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_modelfile_prints_what_its_chat_template_prints(name: str) -> None:
    render = family(name)
    source = derived(render)
    assert source is not None
    golden = FOLDER / f"{name}.gotmpl"
    if os.environ.get("TUNESMITH_WRITE_GOLDEN"):
        golden.write_text(source, encoding="utf-8")
    assert source == golden.read_text(encoding="utf-8")
    probes = list(probes_of(render))
    assert len(probes) >= 3
    for messages, text in probes:
        assert BEGIN + go_template.render(source, ollama_data(messages)) in {text, BEGIN + text}


def test_models_without_a_template_get_chatml() -> None:
    """000-25: the fallback is ChatML everywhere, also in the Modelfile."""
    source = derived(renderer(None))
    assert source is not None
    printed = go_template.render(source, ollama_data([("user", "Hi")]))
    assert printed == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_demo_model_s_template_is_translated() -> None:
    render = renderer((ANVIL / "chat_template.jinja").read_text(encoding="utf-8"))
    source = derived(render)
    assert source is not None
    assert prints_the_same(source, render, begin_token="")


@pytest.mark.parametrize(
    "source",
    [
        # Counts its messages: no marks can say that.
        "{% for m in messages %}{{ loop.index }}{{ m.role }}:{{ m.content }}\n{% endfor %}A:",
        # Shouts: the text itself changes.
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}<assistant>",
        # Forgets all but the last message.
        "<u>{{ messages[-1].content }}</u>",
        # Says everything twice.
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "",
    ],
)
def test_a_template_that_is_more_than_marks_is_not_guessed_at(source: str) -> None:
    render = renderer(source)
    made = derived(render)
    assert made is None or not prints_the_same(made, render, begin_token=BEGIN)


def test_braces_in_marks_are_text() -> None:
    render = renderer("{% for m in messages %}{{ '{{' + m.role + '}}' + m.content }}{% endfor %}")
    source = derived(render)
    assert source is not None
    assert go_template.render(source, ollama_data([("user", "x")])) == "{{user}}x"


def test_a_wrong_template_does_not_print_the_same() -> None:
    source = derived(family("qwen2_5"))
    assert source is not None
    assert not prints_the_same(source, family("llama3"), begin_token=BEGIN)
