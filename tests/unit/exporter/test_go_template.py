"""The forms of Go templates that our own TEMPLATEs have, and the refusal of all others."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from exporter.domain.go_template import GoTemplateError, render
from exporter.domain.template_probes import GROUPS, ollama_data
from exporter.domain.template_synthesis import Marks, SystemPlace, go_source
from tests.unit.exporter.places import REPOSITORY

DATA = {
    "System": "S",
    "Messages": [
        {"Role": "user", "Content": "a"},
        {"Role": "assistant", "Content": "b"},
        {"Role": "user", "Content": "c"},
    ],
}
WITH_SYSTEM = {"System": "S", "Messages": [{"Role": "system", "Content": "S"}]}
RANGE, LAST = (
    "{{ range $i, $_ := .Messages }}",
    "{{ $last := eq (len (slice $.Messages $i)) 1 }}",
)
STANDS_FIRST = '(eq (index $.Messages 0).Role "system")'
GOLDEN = sorted((REPOSITORY / "tests" / "golden" / "exporter" / "templates").glob("*.gotmpl"))


def over_messages(body: str) -> str:
    return f"{{{{ $first := true }}}}{RANGE}{LAST}{body}{{{{ end }}}}"


def when(condition: str) -> str:
    return over_messages(f"{{{{ if {condition} }}}}1{{{{ else }}}}0{{{{ end }}}}")


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("plain", "plain"),
        ("{{ .System }}|{{ $.System }}", "S|S"),
        ('{{ "{{" }}x{{ "}" }}', "{{x}"),
        ("{{ if $.System }}yes{{ else }}no{{ end }}", "yes"),
        (f"{RANGE}[{{{{ .Content }}}}{{{{ $.System }}}}]{{{{ end }}}}.", "[aS][bS][cS]."),
        (f"{RANGE}.{{{{ end }}}}{{{{ .System }}}}", "...S"),
        (when("$i"), "011"),
        (when("not $i"), "100"),
        (when("not $last"), "110"),
        (when('eq .Role "user"'), "101"),
        (when('eq .Role "assistant"'), "010"),
        (when('eq .Role "system"'), "000"),
        (when('and $last (ne .Role "assistant")'), "001"),
        (when("and $last $.System"), "001"),
        (when("and $first $.System"), "111"),
        (when(STANDS_FIRST), "000"),
        (when(f"and $last {STANDS_FIRST}"), "000"),
        (when(f"and $first {STANDS_FIRST}"), "000"),
        (over_messages("{{ if and $first $.System }}1{{ end }}{{ $first = false }}"), "1"),
        (over_messages("{{ if $i }}2{{ else if not $i }}1{{ else }}0{{ end }}"), "122"),
        (
            over_messages("{{ if not $i }}{{ if not $last }}x{{ else }}y{{ end }}{{ end }}."),
            "x...",
        ),
    ],
)
def test_a_form_prints_what_go_prints(source: str, printed: str) -> None:
    """Package documentation of text/template: what each action does, and which values are empty."""
    assert render(source, DATA) == printed


def test_a_system_message_that_stands_first_is_seen() -> None:
    for condition in (STANDS_FIRST, f"and $last {STANDS_FIRST}", f"and $first {STANDS_FIRST}"):
        assert render(when(condition), WITH_SYSTEM) == "1"
    assert render(when("$.System"), {**DATA, "System": ""}) == "000"


@pytest.mark.parametrize(
    "form",
    [
        ".Response", ".Tools", "$x", "$.Messages", ".", "len .Messages", '"text"', "`{`", "break",
        "/* a comment */", ".System | len", "$first := false", "$last = true", "end", "else",
        "else if $.System", "with .System", "if .System", "if and $.System $.System",
        'if eq .Role "tool"', "range .Messages", "range $i, $m := .Messages", "if  $.System",
        'template "x"', "define", " .System", "$.System ", "- $.System", "$.System -",
    ],
)  # fmt: skip
def test_a_form_that_our_templates_do_not_have_is_refused_by_name(form: str) -> None:
    with pytest.raises(GoTemplateError, match="not a form that our templates have") as refused:
        render(f"a{{{{ {form} }}}}b{{{{ end }}}}", DATA)
    assert form in str(refused.value)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{- $.System }}", "not a form"),
        ("{{$.System}}", "not a form"),
        ("{{ $.System", "not a form"),
        ("a } b", "not a form"),
        ("{{ if $.System }}", "if has no end"),
        (RANGE, "range has no end"),
        (f"{RANGE}{{{{ else }}}}{{{{ end }}}}", "'else' is not a form"),
        ("{{ if $.System }}{{ else }}{{ else }}{{ end }}", "'else' is not a form"),
        ("{{ if $last }}{{ end }}", "not a form"),
        ("{{ if not $last }}{{ end }}", r"\$last is not declared"),
        ("{{ if $i }}{{ end }}", r"\$i is not declared"),
        ("{{ $first = false }}", r"\$first is not declared"),
        (LAST, r"\$i is not declared"),
        (f"{RANGE}{{{{ end }}}}{{{{ if $i }}}}{{{{ end }}}}", r"\$i is not declared"),
        (
            "{{ if $.System }}{{ $first := true }}{{ end }}{{ $first = false }}",
            r"\$first is not declared",
        ),
        # Go would leave the outer one as it is.
        ("{{ $first := true }}{{ $first := true }}", r"\$first is declared twice"),
        (f"{RANGE}{RANGE}{{{{ end }}}}{{{{ end }}}}", r"\$i is declared twice"),
        ("{{ .Content }}", "lacks"),
        (f"{RANGE}{{{{ .System }}}}{{{{ end }}}}", "lacks"),
    ],
)
def test_what_go_reads_otherwise_is_refused(source: str, why: str) -> None:
    with pytest.raises(GoTemplateError, match=why):
        render(source, DATA)


def test_a_conversation_without_messages_has_no_first_one() -> None:
    with pytest.raises(GoTemplateError, match="lacks"):
        render(f"{{{{ if {STANDS_FIRST} }}}}{{{{ end }}}}", {"System": "", "Messages": []})


def written_sources() -> Iterator[str]:
    """The TEMPLATEs of all kinds of marks, each text there and absent, one with braces."""
    places: tuple[SystemPlace, ...] = get_args(SystemPlace)
    texts = ("", "<{x}>")
    lates = (None, ("", ""), ("<{x}>", ""), ("<", ">"))
    for place, marks_empty, late in itertools.product(places, (False, True), lates):
        for head, user, answer, system, prompt in itertools.product(texts, repeat=5):
            yield go_source(
                Marks(
                    head=head, user_start=user, user_end=user, assistant_start=answer,
                    assistant_end=answer, prompt=prompt, system_place=place, system_start=system,
                    system_end=system, late=late, marks_empty_system=marks_empty,
                )
            )  # fmt: skip


def test_every_template_that_we_write_is_read() -> None:
    probes = [
        ollama_data(conversation)
        for group in GROUPS
        for conversation in group.conversations
        if len(conversation.turns) < 10
    ]
    sources = set(written_sources())
    assert len(sources) > 300
    for index, source in enumerate(sorted(sources)):
        render(source, probes[index % len(probes)])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_template_of_a_known_family_is_read(path: Path) -> None:
    assert render(path.read_text(encoding="utf-8"), DATA)
