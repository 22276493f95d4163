"""Chat templates: what transformers (5.24) renders, and what is said when one does not work."""

import jinja2.sandbox
import pytest

from sim.bridge.chat_template import render

MESSAGES = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "Hé?"},
    {
        "role": "assistant",
        "content": "Yes.",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [1, 2]}}}],
    },
    {"role": "user", "content": "And?", "name": None},
]
CALL = '{"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [1, 2]}}}'
SORTED = '{"function":{"arguments":{"a":[1,2],"b":1},"name":"f"},"type":"function"}'

RENDERED = {
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% set x = 3 %}{% endgeneration %}"
    "{{ x }}{% else %}{{ m.content }}{% endif %}|{% endfor %}": 'Be <brief> & "kind".|Hé?|Yes.!|And?|',
    "{%- for m in messages -%}\n {%- generation -%}\n {{ m.content }} \n{%- endgeneration -%}\n{%- endfor -%}": (
        'Be <brief> & "kind".Hé?Yes.And?'
    ),
    "{{ messages[0] | tojson }}": '{"role": "system", "content": "Be <brief> & \\"kind\\"."}',
    "{{ messages[1] | tojson(ensure_ascii=True) }}": '{"role": "user", "content": "H\\u00e9?"}',
    "{{ messages[2].tool_calls | tojson(separators=(',', ':'), sort_keys=True) }}": f"[{SORTED}]",
    "{{ messages[1] | tojson(separators=[',', ':']) }}": '{"role":"user","content":"Hé?"}',
    "{{ messages[1] | tojson(indent=4) }}": '{\n    "role": "user",\n    "content": "Hé?"\n}',
    "{{ messages[2].tool_calls[0] | tojson(false, none, none, false) }}": CALL,
    "{{ tools is not none }} {{ documents is none }} {{ tools is defined }} {{ other is defined }}": "False True True False",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% if loop.last %}{% break %}{% endif %}"
    "{{ m.role }};{% endfor %}": "user;assistant;",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ dict(a=1) }}"
    "{{ dict.fromkeys(['x']) }}": "4{'a': 1}{'x': None}",
    "{% for m in messages %}\n    {{ m.role }}\n    {% endfor %}\nend\n": (
        "    system\n    user\n    assistant\n    user\nend"
    ),
    "{{ strftime_now('%Y') | length }}": "4",
    "{% for m in messages %}{{ m.tool_calls is defined }}{{ m.name is defined }} {% endfor %}": (
        "FalseFalse FalseFalse TrueFalse FalseFalse "
    ),
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0].role) }}{{ messages[1].content.upper() }}": "[system]HÉ?",
    "{{ messages[1:] | map(attribute='role') | join(',') }}{{ messages[2] is mapping }}": "user,assistant,userTrue",
}


@pytest.mark.parametrize("template", RENDERED)
def test_templates_render_as_in_transformers(template):
    assert render(template, MESSAGES, {}) == RENDERED[template]


def test_values_are_seen():
    template = "{{ tools is not none }} {{ tools[0].name }} {{ enable_thinking }} {{ bos_token }}"
    assert render(template, MESSAGES, {"tools": [{"name": "f"}], "enable_thinking": False, "bos_token": "<s>"}) == (
        "True f False <s>"
    )


@pytest.mark.parametrize(
    ("template", "line", "fact"),
    [
        ("a\n{{ x.y.z }}", 2, "'x' is undefined"),
        ("a\n\n{% for x in %}", 3, "TemplateSyntaxError"),
        ("{{ 1 // 0 }}", 1, "ZeroDivisionError"),
        ("{{ messages.append(1) }}", 1, "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 1, "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", 1, "SecurityError"),
        ("{{ namespace(__x=1) }}", 1, "SecurityError"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", 1, "SecurityError"),
        ("\n{{ range(10**9) | list }}", 2, "OverflowError"),
        ("{{ 1 + 'a' }}", 1, "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 1, "RecursionError"),
    ],
)
def test_a_template_that_fails_is_to_blame_and_not_the_messages(template, line, fact):
    with pytest.raises(ValueError, match=rf"^template: .* fails in line {line} \(.*{fact}"):
        render(template, MESSAGES, {})


def test_a_template_may_refuse_messages():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    with pytest.raises(ValueError, match=r"^messages: .*no system message"):
        render(template, MESSAGES, {})


@pytest.mark.parametrize(
    ("messages", "fact"),
    [
        ("hi", "'hi'"),
        ([], "none"),
        (["hi"], "a str in place 0"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "no role in place 1"),
        ([{"role": "user", "content": "a\ud83d"}], "lone surrogate"),
        ([{"role": "user", "content": jinja2.sandbox}], "a module"),
    ],
)
def test_messages_that_are_none(messages, fact):
    with pytest.raises(ValueError, match=f"^messages: .*{fact}"):
        render("{{ messages }}", messages, {})


def test_a_template_cannot_reach_what_was_given():
    messages = [{"role": "user", "content": "a"}]
    render("{% set _ = messages[0].update({'role': 'x'}) if false %}{{ messages }}", messages, {})
    with pytest.raises(ValueError, match="SecurityError"):
        render("{{ messages[0].update({'role': 'x'}) }}", messages, {})
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("reasoning", "seen"),
    [
        ({"reasoning": "2+2"}, "2+2,2+2,2+2"),
        ({"thinking": "2+2"}, "2+2,2+2,"),
        ({"reasoning_content": "2+2"}, "2+2,2+2,"),
        ({"reasoning_content": None, "thinking": "a", "reasoning": "b"}, "a,a,b"),
        ({"reasoning_content": "c", "thinking": "a"}, "c,a,"),
        ({"reasoning": ""}, ",,"),
        ({}, ",,"),
    ],
)
def test_reasoning_has_the_names_that_templates_read(reasoning, seen):
    """As transformers fills them in."""
    template = "{% for m in messages %}{{ m.reasoning_content }},{{ m.thinking }},{{ m.reasoning }}{% endfor %}"
    messages = [{"role": "assistant", "content": "4", **reasoning}]
    assert render(template, messages, {}) == seen
    assert messages == [{"role": "assistant", "content": "4", **reasoning}]
