"""A Modelfile is read as Ollama reads it, and what the exporter writes is read as it was meant."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain import bundle
from exporter.domain.bundle import BundleFacts
from exporter.domain.quantization import Quantization
from tunesmith.errors import InputError
from tunesmith.ollama.modelfile import parse

# Texts full of what could end a value early.
TEXTS = st.text(st.sampled_from("ab {}|<>\"\\\n\t\r'#ü日🙂\u00a0\u200b"), max_size=24)


def facts(*, template: str | None, stops: tuple[str, ...]) -> BundleFacts:
    return BundleFacts(
        ollama_name="m",
        base_model="b",
        run="projects/p/runs/r",
        quantization=Quantization.Q4_K_M,
        template=template,
        outcomes={},
        stops=stops,
        context_tokens=32_768,
        generation={"do_sample": True, "temperature": 0.1, "top_k": 20, "top_p": 0.123456789},
        figures=None,
    )


@given(template=TEXTS, stops=st.lists(TEXTS.filter(bool), max_size=3).map(tuple))
def test_what_the_exporter_writes_is_read_as_it_was_meant(
    template: str, stops: tuple[str, ...]
) -> None:
    """001-37: nothing that Ollama would read otherwise is written at all."""
    found = parse(bundle.modelfile(facts(template=template, stops=stops)))
    can_be_said = bundle.quoted(template, '"""') is not None
    assert found.template == (template if can_be_said else "")
    assert found.parameters.get("stop", []) == [s for s in stops if bundle.quoted(s) is not None]
    assert found.source == "./model.gguf"
    assert found.parameters["num_ctx"] == 8192


def test_ordinary_templates_and_stops_can_be_said() -> None:
    template = '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}'
    found = parse(bundle.modelfile(facts(template=template, stops=("<|im_end|>", "\n\n", 'a"b'))))
    assert found.template == template
    assert found.parameters["stop"] == ["<|im_end|>", "\n\n", 'a"b']


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("FROM m\nTEMPLATE one two  \n", "one two"),
        ('FROM m\nTEMPLATE "  kept  "\n', "  kept  "),
        ('FROM m\nTEMPLATE """a\n"b"\n"""', 'a\n"b"\n'),
        ('FROM m\nTEMPLATE "a\\nb"', "a\\nb"),
        ("\ufeff# a comment\n\n  from m\ntemplate t", "t"),
        ("FROM m\nTEMPLATE a\u200bb\u00a0c", "abc"),
        ("FROM m\nTEMPLATE a # b", "a # b"),
        ("FROM m\r\nTEMPLATE a\r\n", "a"),
        ("TEMPLATE old\nFROM m\nTEMPLATE new", "new"),
    ],
)
def test_values_end_where_ollama_ends_them(text: str, template: str) -> None:
    """The rules of Ollama's parser: quotes without escapes, comments only where a line begins."""
    assert parse(text).template == template


def test_numbers_are_those_that_ollama_sends() -> None:
    found = parse(
        "FROM m\nPARAMETER temperature 0.123456789\nPARAMETER top_k 7\nPARAMETER use_mmap t\n"
        "PARAMETER stop a\nPARAMETER stop b\nPARAMETER mirostat 1\nPARAMETER min_p 1e-05\n"
    ).parameters
    assert found == {
        "temperature": 0.12345679,
        "top_k": 7,
        "use_mmap": True,
        "stop": ["a", "b"],
        "min_p": 1e-05,
    }


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_keeps_the_precision_of_a_float(value: float) -> None:
    found = parse(f"FROM m\nPARAMETER temperature {value!r}").parameters["temperature"]
    assert struct.pack("<f", found) == struct.pack("<f", value)


def test_system_messages_and_licences_are_kept() -> None:
    fields = parse(
        "FROM m\nSYSTEM Be brief.\nMESSAGE user Hi: there\nMESSAGE assistant Ho\nLICENSE MIT\n"
    ).create_fields()
    assert fields == {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Hi: there"},
            {"role": "assistant", "content": "Ho"},
        ],
        "license": ["MIT"],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TEMPLATE t",
        "FROM",
        "FROM m\nRUN rm -rf /",
        "FROM m\nPARAMETER nonsense 1",
        "FROM m\nPARAMETER top_k many",
        "FROM m\nPARAMETER temperature nan",
        "FROM m\nPARAMETER temperature 1e39",
        "FROM m\nPARAMETER top_k 9223372036854775808",
        "FROM m\nPARAMETER  top_k 1",
        'FROM m\nTEMPLATE """open',
        "FROM m\nMESSAGE robot hi",
        "FROM m\nFR0M x",
        "FROM m" + " " * (1 << 20),
    ],
)
def test_the_rest_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.code == "DEP_OLLAMA_REGISTRATION_FAILED"


@given(st.text(max_size=200))
def test_no_text_does_anything_else(text: str) -> None:
    with contextlib.suppress(InputError):
        parse("FROM m\n" + text)
