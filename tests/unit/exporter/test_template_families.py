"""Modelfile templates of the known families: derived from the chat template, proven by printing.

The chat templates in tests/golden/exporter/templates print what those of the families print. Beside
each lies the TEMPLATE that follows from it, where there is one; `outcomes.json` says what each
group of probes gave. TUNESMITH_WRITE_GOLDEN=1 writes them anew.
"""

import functools
import json
import os

import pytest

from corpus import chat
from exporter.domain import go_template
from exporter.domain.template_probes import (
    GROUPS,
    Conversation,
    Probed,
    Render,
    chat_turns,
    ollama_data,
    rendered_groups,
    said,
)
from exporter.domain.template_synthesis import Synthesis, compare, is_shippable, synthesise
from tests.unit.exporter.places import ANVIL, REPOSITORY

FOLDER = REPOSITORY / "tests" / "golden" / "exporter" / "templates"
OUTCOMES = FOLDER / "outcomes.json"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
# Templates that drop the thoughts of earlier answers, which no TEMPLATE can.
DROP_THOUGHTS = ["deepseek_r1", "qwen3", "qwen3_thinking"]
BEGIN, END = "<s>", "</s>"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
REQUIRED = {group.key for group in GROUPS if group.is_required}


def renderer(source: str | None) -> Render:
    template = chat.ChatTemplate.compile(source, tokens={"bos_token": BEGIN, "eos_token": END})

    def render(conversation: Conversation, add_prompt: bool) -> str:
        return template.render_turns(
            chat_turns(conversation), tools=conversation.tools, add_generation_prompt=add_prompt
        )

    return render


def family(name: str) -> Render:
    return renderer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n"))


@functools.cache
def derived_family(name: str) -> Synthesis:
    return derived(family(name))


def derived(render: Render) -> Synthesis:
    begins = render(said(("user", "x")), True).startswith(BEGIN)
    return synthesise(render, begin_token=BEGIN if begins else "", end_token=END)


def test_the_families_of_the_catalog_are_here() -> None:
    wanted = {"llama3", "qwen2_5", "qwen3", "gemma2", "gemma3", "mistral_v3", "phi3", "smollm2"}
    assert wanted | {"llama3_1", "qwen2_5_tools", "deepseek_r1", "chatml"} <= set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_modelfile_is_derived_and_compared(name: str) -> None:
    made = derived_family(name)
    golden = FOLDER / f"{name}.gotmpl"
    outcomes = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    if os.environ.get("TUNESMITH_WRITE_GOLDEN"):
        golden.unlink(missing_ok=True)
        if made.source is not None:
            golden.write_text(made.source, encoding="utf-8")
        outcomes[name] = made.outcomes
        text = json.dumps(dict(sorted(outcomes.items())), indent=2)
        OUTCOMES.write_text(text + "\n", encoding="utf-8")
    assert made.source == (golden.read_text(encoding="utf-8") if golden.exists() else None)
    assert made.outcomes == outcomes[name]
    assert set(made.outcomes) == {group.key for group in GROUPS}


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {*DROP_THOUGHTS}))
def test_a_family_s_modelfile_prints_what_its_chat_template_prints(name: str) -> None:
    """Printed here once more, beside what `compare` says of it."""
    render = family(name)
    made = derived_family(name)
    assert made.source is not None
    count = 0
    for group, texts in rendered_groups(render):
        for conversation, text in texts:
            if group.is_required or made.outcomes[group.key] is Probed.EQUAL:
                printed = go_template.render(made.source, ollama_data(conversation))
                assert BEGIN + printed in {text, BEGIN + text}
                count += 1
    assert count >= 7


@pytest.mark.parametrize("name", DROP_THOUGHTS)
def test_a_template_that_drops_earlier_thoughts_gets_no_modelfile_template(name: str) -> None:
    made = derived_family(name)
    assert made.source is None
    assert made.outcomes["plain_turns"] is Probed.EQUAL
    assert made.outcomes["thoughts_in_history"] is Probed.DIFFERENT


@pytest.mark.parametrize("name", ["qwen2_5_tools", "llama3_1"])
def test_tools_that_a_modelfile_cannot_say_are_known(name: str) -> None:
    made = derived_family(name)
    assert made.source is not None
    assert made.outcomes["tool_definitions"] is Probed.DIFFERENT
    assert made.outcomes["tool_turns"] is Probed.DIFFERENT


def test_a_template_that_trims_is_told_from_one_that_does_not() -> None:
    assert derived_family("llama3").outcomes["surrounding_blanks"] is Probed.DIFFERENT
    assert derived_family("qwen2_5").outcomes["surrounding_blanks"] is Probed.EQUAL


def test_what_a_template_refuses_or_leaves_out_was_not_probed() -> None:
    gemma = derived_family("gemma2").outcomes
    assert gemma["empty_system_message"] is Probed.NOT_PROBED
    # Definitions of tools do not show in what it prints: an equal text says nothing of them.
    assert gemma["tool_definitions"] is Probed.NOT_PROBED
    assert gemma["many_turns"] is Probed.EQUAL


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "llama3_2", "granite", "mistral_v7"])
def test_late_and_empty_system_messages_stand_in_their_place(name: str) -> None:
    outcomes = derived_family(name).outcomes
    assert outcomes["late_system_message"] is Probed.EQUAL
    assert outcomes["empty_system_message"] is Probed.EQUAL


@pytest.mark.parametrize("name", ["gemma3", "mistral_v3"])
def test_an_empty_system_text_inside_a_user_s_message_keeps_its_marks(name: str) -> None:
    assert derived_family(name).outcomes["empty_system_message"] is Probed.EQUAL


def test_a_late_system_message_is_printed_where_the_template_joins_all_of_them() -> None:
    render = renderer(
        "{% set ns = namespace(all='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.all = ns.all + ('\\n\\n' if ns.all else '') + m.content %}{% endif %}"
        "{% endfor %}{% if ns.all %}<sys>{{ ns.all }}</sys>{% endif %}"
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</>"
        "{% endif %}{% endfor %}" + PROMPT
    )
    made = derived(render)
    assert made.source is not None
    assert made.outcomes["late_system_message"] is Probed.EQUAL
    assert made.outcomes["second_system_message"] is Probed.EQUAL


def test_models_without_a_template_get_chatml() -> None:
    """000-25: the fallback is ChatML everywhere, also in the Modelfile."""
    source = derived(renderer(None)).source
    assert source is not None
    printed = go_template.render(source, ollama_data(said(("user", "Hi"))))
    assert printed == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_that_stands_last_stays_open() -> None:
    source = derived(renderer(None)).source
    assert source is not None
    printed = go_template.render(source, ollama_data(said(("user", "Hi"), ("assistant", "Hel"))))
    assert printed == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"


def test_the_demo_model_s_template_is_translated() -> None:
    made = derived(renderer((ANVIL / "chat_template.jinja").read_text(encoding="utf-8")))
    assert made.source is not None
    assert {key for key in REQUIRED if made.outcomes[key] is not Probed.EQUAL} == set()


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
        # Cuts what is long.
        "{% for m in messages %}<{{ m.role }}>{{ m.content[:2000] }}</>{% endfor %}" + PROMPT,
        # Forgets what is long ago.
        "{% for m in messages[-9:] %}<{{ m.role }}>{{ m.content }}</>{% endfor %}" + PROMPT,
        "",
    ],
)
def test_a_template_that_is_more_than_marks_is_not_guessed_at(source: str) -> None:
    assert derived(renderer(source)).source is None


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        ("<{{ m.role }}>{{ m.content[:2000] }}</>", "long_texts"),
        ("{% if loop.index < 60 %}<{{ m.role }}>{{ m.content }}</>{% endif %}", "many_turns"),
        ("<{{ m.role }}>{{ m.content or 'Nothing' }}</>", "empty_system_message"),
        (
            "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</>",
            "thoughts_in_history",
        ),
    ],
)
def test_each_required_group_finds_its_own_fault(source: str, broken: str) -> None:
    made = derived(renderer("{% for m in messages %}" + source + "{% endfor %}" + PROMPT))
    assert made.source is None
    different = {key for key, found in made.outcomes.items() if found is Probed.DIFFERENT}
    assert different & REQUIRED == {broken}


def test_a_template_over_which_nothing_was_compared_is_not_shipped() -> None:
    nothing = dict.fromkeys((group.key for group in GROUPS), Probed.NOT_PROBED)
    assert not is_shippable(nothing)
    assert is_shippable({**nothing, "plain_turns": Probed.EQUAL})
    assert is_shippable({**nothing, "plain_turns": Probed.EQUAL, "tool_turns": Probed.DIFFERENT})
    for key in REQUIRED:
        assert not is_shippable({**nothing, "plain_turns": Probed.EQUAL, key: Probed.DIFFERENT})


def test_braces_in_marks_are_text() -> None:
    render = renderer("{% for m in messages %}{{ '{{' + m.role + '}}' + m.content }}{% endfor %}")
    source = derived(render).source
    assert source is not None
    assert go_template.render(source, ollama_data(said(("user", "x")))) == "{{user}}x"


def test_a_wrong_template_does_not_print_the_same() -> None:
    source = derived_family("qwen2_5").source
    assert source is not None
    outcomes = compare(source, rendered_groups(family("llama3")), begin_token=BEGIN)
    assert {outcomes[key] for key in REQUIRED} == {Probed.DIFFERENT}


def test_a_source_that_a_modelfile_cannot_hold_is_not_taken() -> None:
    made = synthesise(
        family("chatml"), begin_token="", end_token=END, is_sayable=lambda _source: False
    )
    assert made.source is None
    assert made.outcomes == {"plain_turns": Probed.DIFFERENT}


@pytest.mark.parametrize("name", ["qwen3", "chatml"])
def test_the_end_of_an_answer_is_known_with_and_without_a_template(name: str) -> None:
    assert derived_family(name).assistant_end == "<|im_end|>\n"


def test_ollama_joins_neighbours_of_one_role_and_all_system_texts() -> None:
    """`collate` in template/template.go of Ollama; results of tools stay apart."""
    data = ollama_data(
        said(
            ("system", "A"), ("system", "B"), ("user", "C"), ("user", "D"), ("tool", "E"),
            ("tool", "F"), ("system", "G"),
        )
    )  # fmt: skip
    assert data["System"] == "A\n\nB\n\nG"
    assert [(one["Role"], one["Content"]) for one in data["Messages"]] == [
        ("system", "A\n\nB"), ("user", "C\n\nD"), ("tool", "E"), ("tool", "F"), ("system", "G"),
    ]  # fmt: skip


def test_the_probes_hold_what_they_claim() -> None:
    groups = {group.key: group.conversations for group in GROUPS}
    (asked, answered), turns = groups["long_texts"], groups["many_turns"]
    long = [turn.content for turn in (*asked.turns, *answered.turns) if len(turn.content) > 99]
    assert [len(text) for text in long] == [10_000] * 3
    for conversation in turns:
        assert sum(turn.role == "user" for turn in conversation.turns) == 40
    # A template that trims would differ over these for a reason of its own.
    for group in GROUPS:
        for conversation in group.conversations:
            is_trimmed = all(turn.content == turn.content.strip() for turn in conversation.turns)
            assert is_trimmed is not group.has_outer_blanks
