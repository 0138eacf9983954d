"""Go templates as the documentation of text/template describes them."""

import pytest

from exporter.domain.go_template import GoTemplateError, render

DATA = {
    "System": "S",
    "Messages": [
        {"Role": "user", "Content": "a"},
        {"Role": "assistant", "Content": "b"},
        {"Role": "user", "Content": "c"},
    ],
    "Empty": [],
}


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("plain", "plain"),
        ("{{ .System }}", "S"),
        ("a {{- .System -}} b", "aSb"),
        ("a\n{{- /* nothing */ -}}\nb", "ab"),
        ("{{ if .System }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .Empty }}yes{{ else if .System }}second{{ else }}no{{ end }}", "second"),
        ("{{ range .Messages }}[{{ .Content }}]{{ end }}", "[a][b][c]"),
        ("{{ range .Empty }}x{{ else }}none{{ end }}", "none"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", "0a1b2c"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}u{{ else }}-{{ end }}{{ end }}', "u-u"),
        ("{{ $x := 1 }}{{ range .Messages }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ range .Messages }}{{ $x := 2 }}{{ end }}{{ $x }}", "1"),
        ("{{ range $i, $_ := .Messages }}{{ len (slice $.Messages $i) }}{{ end }}", "321"),
        ("{{ (index .Messages 1).Content }}", "b"),
        ('{{ if and .System (eq (index $.Messages 0).Role "user") }}u{{ end }}', "u"),
        (
            "{{ range $i, $_ := .Messages }}{{ if $i }}-{{ else if not $i }}0{{ end }}{{ end }}",
            "0--",
        ),
        ("{{ with .System }}{{ . }}{{ end }}", "S"),
        ("{{ range .Messages }}{{ .Content }}{{ break }}{{ end }}", "a"),
        ("{{ range $i, $_ := .Messages }}{{ if $i }}{{ continue }}{{ end }}{{ $i }}{{ end }}", "0"),
        ('{{ if and .System (not .Empty) }}{{ "{{" }}{{ end }}', "{{"),
        ('{{ if or .Empty (ne .System "T") }}1{{ end }}', "1"),
        ("{{ len .Messages | lt 2 }}", "true"),
        ("{{ .System | len }}", "1"),
        ('{{ eq .System "a" "S" }}', "true"),
        ("{{ `raw\\n` }}", "raw\\n"),
        ('{{ "tab\\t" }}', "tab\t"),
        ("{{ .Missing }}", "<no value>"),
    ],
)
def test_a_template_prints_what_go_prints(source: str, printed: str) -> None:
    assert render(source, DATA) == printed


@pytest.mark.parametrize(
    "source",
    ["{{ if .System }}", "{{ end }}", "{{ .System", "{{ call .System }}", "{{ $nowhere }}",
     "{{ ( .System }}", "{{ .System ? }}", "{{ index .Messages 9 }}", "{{ | len }}"],
)  # fmt: skip
def test_what_is_not_valid_is_refused(source: str) -> None:
    with pytest.raises(GoTemplateError):
        render(source, DATA)


def test_a_template_that_loops_is_stopped() -> None:
    nested = "{{ range .L }}" * 6 + "x" + "{{ end }}" * 6
    with pytest.raises(GoTemplateError, match="steps"):
        render(nested.replace(".L", "$.L"), {"L": list(range(10))})
