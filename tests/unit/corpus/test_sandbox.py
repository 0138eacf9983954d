"""Chat templates of strangers: what they may not do, and what it costs to try."""

import time
from typing import Any

import pytest

from corpus import template_budget
from corpus.chat import ChatTemplate
from corpus.samples import Message, Role
from corpus.sandbox import compile_template
from lexicon.faults import Fault, FaultCode

ATTACKS = {
    "class walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by string": "{{ ''['__class__']['__mro__'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('id') }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "macro code": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "format string": "{{ '{0.__class__}'.format('') }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "wide format": "{{ '%1000000000d' % 1 }}",
    "wide justify": "{{ 'a'.ljust(10 ** 9) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "power": "{{ 10 ** 1000000000 }}",
    "big number": "{% set ns = namespace(x=9) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "repeat text": "{{ 'a' * 1000000000 }}",
    "repeat list": "{{ ([0] * 1000000000) | length }}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}"
    "{% endfor %}",
    "hidden loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "filter loops": "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}"
    "{% endfor %}",
    "long range": "{{ range(1000000000) | list }}",
    "doubling by ~": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "doubling by block": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "shared lists printed": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "shared lists as json": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "shared lists compared": "{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "shared lists tested": "{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x is eq(ns.y) }}",
    "deep macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "wide macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "wide date": "{{ strftime_now('%999999999d') }}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "debug": "{% debug %}",
    "mutation": "{{ messages.append(1) }}",
    "deletion": "{{ messages[0].clear() }}",
    "refusal": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_ends_as_a_fault_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 4: nothing of Python is reached, and time and memory stay bounded."""
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.1)
    began = time.thread_time()
    with pytest.raises(Fault) as caught:
        ChatTemplate.compile(ATTACKS[name]).render([Message(role=Role.USER, content="Hi")])
    assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID
    assert time.thread_time() - began < 2


ORDINARY: list[tuple[str, dict[str, Any], str]] = [
    ("{{ messages | length }}", {"messages": [1, 2]}, "2"),
    ("{% for m in messages %}{{ m.role }}{{ loop.last }};{% endfor %}",
     {"messages": [{"role": "user"}, {"role": "tool"}]}, "userFalse;toolTrue;"),
    ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
     {"messages": [{"role": "user"}, {"role": "tool"}]}, "1"),
    ("{{ messages[1:][::-1] | map(attribute='role') | join(',') }}",
     {"messages": [{"role": "a"}, {"role": "b"}, {"role": "c"}]}, "c,b"),
    ("{{ x.split('</t>')[-1].lstrip('\n') | trim }}", {"x": "a</t>\n b "}, "b"),
    ("{{ {'a': [1, 'ä<']} | tojson }}", {}, '{"a": [1, "ä<"]}'),
    ("{% set a = namespace(n=0) %}{% for i in [1,2] %}{% set a.n = a.n + i %}{% endfor %}{{ a.n }}",
     {}, "3"),
    ("{% generation %}said{% endgeneration %}", {}, "said"),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}, "01"),
    ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m('x') ~ m(1) }}", {}, "<x><1>"),
    ("{{ strftime_now('%d %b %Y') }}", {}, "26 Jul 2024"),
    ("{% if tools is defined and tools is not none %}a{% else %}b{% endif %}",
     {"tools": None}, "b"),
    ("  {%- if true %}\n  a\n  {%- endif %}\n", {}, "  a"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "variables", "expected"), ORDINARY)
def test_ordinary_templates_render(source: str, variables: dict[str, Any], expected: str) -> None:
    assert compile_template(source).render(variables) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% macro m() %}{% endmacro %}{{ m.__globals__ }}", ""),
        ("{{ [''] | map(attribute='__class__') | list }}", "[Undefined]"),
    ],
)
def test_what_is_hidden_prints_as_nothing(source: str, expected: str) -> None:
    """Attack 4"""
    assert compile_template(source).render({}) == expected


def test_turns_with_tools_and_thoughts_are_rendered_in_the_same_jail() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "One.", "reasoning_content": "Easy."},
    ]
    source = (
        "{% for t in tools or [] %}[{{ t | tojson }}]{% endfor %}{% for m in messages %}"
        "<{{ m.role }}>{{ m.reasoning_content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}(){% endfor %}{{ m.content }}{% endfor %}"
    )
    template = ChatTemplate.compile(source)
    said = "<assistant>f()<tool>1<assistant>Easy.One."
    assert template.render_turns(turns) == said
    assert template.render_turns(turns, tools=[{"name": "f"}]) == '[{"name": "f"}]' + said
    for attack in ("{{ messages[0].tool_calls.clear() }}", "{{ tools.append(1) }}"):
        with pytest.raises(Fault) as caught:
            ChatTemplate.compile(attack).render_turns(turns, tools=[{"name": "f"}])
        assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID
    assert turns[0]["tool_calls"]
