"""A chat template is another person's program: whatever it tries ends soon, and says so."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from by_day import by_day
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneloop.models.chat.template import LLAMA3_TEMPLATE, Template, TemplateError, load_template

TRAPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop that searches": "{% set x = 'a' * 10000000 %}{% for a in range(99999) %}{% for b in range(99999) %}{% if 'ab' in x %}{% endif %}{% endfor %}{% endfor %}",
    "output": "{% for a in range(99999) %}{% for b in range(999) %}{{ messages }}{% endfor %}{% endfor %}",
    "text in a loop": "{% for a in range(99999) %}{% for b in range(999) %}" + "x" * 10_000 + "{% endfor %}{% endfor %}",
    "a block that is kept": "{% set x %}{% for a in range(99999) %}{% for b in range(999) %}" + "x" * 9_000 + "{% endfor %}{% endfor %}{% endset %}",
    "multiplied": "{{ 'a' * 10000000000 }}",
    "multiplied list": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joined": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "without a loop": "{% set x0 = 'ab' %}" + "".join(f"{{% set x{i + 1} = x{i} ~ x{i} %}}" for i in range(60)),
    "nested lists": "{% set x0 = ['ab'] %}" + "".join(f"{{% set x{i + 1} = [x{i}, x{i}] %}}" for i in range(60)) + "{{ x60 }}",
    "nested lists as text": "{% set x0 = ['ab'] %}" + "".join(f"{{% set x{i + 1} = [x{i}, x{i}] %}}" for i in range(60)) + "{{ (x60 | string) | length }}",
    "nested lists as JSON": "{% set x0 = ['ab'] %}" + "".join(f"{{% set x{i + 1} = [x{i}, x{i}] %}}" for i in range(60)) + "{{ x60 | tojson }}",
    "replaced": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replaced by the filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "list joined": "{{ (range(99999) | list) | join('b' * 1000000) }}",
    "method join": "{{ ('b' * 1000000).join('a' * 100000) }}",
    "width by %": "{{ '%9999999999d' % 1 }}",
    "width by an argument of %": "{{ '%*d' % (999999999, 1) }}",
    "width by format": "{{ '{:>9999999999}'.format(1) }}",
    "width of format given": "{{ '{:{}}'.format('x', 999999999) }}",
    "width of the filter": "{{ '%9999999999d' | format(1) }}",
    "centred": "{{ 'a' | center(9999999999) }}",
    "justified": "{{ 'a'.ljust(9999999999) }}",
    "indented": "{{ ('a\n' * 1000000) | indent(999999) }}",
    "JSON indented": "{{ (range(99999) | list) | tojson(indent=999999) }}",
    "macros": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(100) }}",
    "macros that stop": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "macros of text": "{% macro f() %}" + "x" * 100_000 + "{% endmacro %}{% for a in range(99999) %}{{ f() }}{% endfor %}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "sum of lists": "{{ ([range(99999) | list] * 99999) | sum(start=[]) }}",
    "mapped": "{{ range(99999) | map('string') | map('center', 99999) | join }}",
    "slices": "{% set x = 'a' * 99999999 %}" + "".join(f"{{% set y{i} = x[1:] %}}" for i in range(500)),
    "date": "{{ strftime_now('%9999999999Y') }}",
    "lipsum": "{{ lipsum(n=9999999) }}",
    "deep": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "long": "x" * 2_000_000,
    "attributes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('true') }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def known(llama3_tokenizer: Path) -> Template:
    return load_template(llama3_tokenizer.parent)


def with_source(template: Template, source: str) -> Template:
    return Template(template.tokenizer, source, template.variables, template.end_ids, template.pad_id, "", {})


@pytest.mark.parametrize("name", by_day(TRAPS, 16))
def test_a_template_that_would_not_end_is_stopped(known: Template, name: str) -> None:
    template = with_source(known, TRAPS[name])
    began, before = time.thread_time(), peak_mb()
    with pytest.raises(TemplateError):
        template.text([{"role": "user", "content": "hello"}])
    assert time.thread_time() - began < 6
    assert peak_mb() - before < 1000


def peak_mb() -> int:
    """Most memory that this process has held."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]


def test_long_conversations_are_rendered(known: Template) -> None:
    turns = [{"role": role, "content": "word " * 2000} for _ in range(500) for role in ("user", "assistant")]
    began = time.thread_time()
    text = with_source(known, LLAMA3_TEMPLATE).text(turns)  # type: ignore[arg-type]
    assert len(text) > 9_000_000 and time.thread_time() - began < 2


COMMON = """\
{%- macro describe(tool) -%}{{ tool.name | upper }}: {{ '%-10s|%d' % (tool.name, 12345) }}{%- endmacro -%}
{%- set ns = namespace(found=false, text='') -%}
{%- for message in messages[::-1] -%}{%- set ns.text = ns.text + message.content[:2] ~ loop.index -%}{%- endfor -%}
{%- for message in messages[1:] -%}{{ loop.length }}{{ loop.last }}{{ message['content'] | trim | replace('a', 'bb') }}
{%- if loop.first and message.content.split(' ')[-1].startswith('w') %} {{ [1, 2] | tojson(indent=4) }}{% endif -%}{%- endfor -%}
{{ ns.text }}{{ describe({'name': 'tool'}) }}{{ '{:>5}|{{"a":{}}}'.format(3, 4) }}{{ 2000 * 3000 }}{{ 2 ** 10 }}
{%- for x in [1, 2, 3] -%}{%- if x == 2 -%}{%- continue -%}{%- endif -%}{{ x }}{%- endfor -%}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}"""


def test_what_common_templates_use_is_as_in_plain_jinja(known: Template) -> None:

    turns = [{"role": "user", "content": f"a word {i} a w"} for i in range(3)]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, indent=indent)
    expected = plain.from_string(COMMON).render(messages=turns)
    assert with_source(known, COMMON).text(turns) == expected  # type: ignore[arg-type]
