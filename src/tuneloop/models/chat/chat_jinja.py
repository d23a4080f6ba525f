"""Jinja for chat templates, which come with a model and are foreign programs: sandboxed, bounded in time and memory.

The sandbox keeps a template from the machine; it does not keep it from a loop without end or from a text of a terabyte.
So what a template does is counted while it renders: characters that are made, steps of loops, calls. No single
operation can make more than what is left, and the clock is looked at between operations.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_SOURCE = 1_000_000  # characters of a template: the longest known has 20,000
CHARACTERS = 200_000_000  # that one rendering may make, intermediate texts included
SECONDS = 3.0  # of the processor's time for one rendering
LOOK = 2_000  # characters between looks at the clock
ITEM = 100  # characters that an item of a list, a step or a call counts as
MOST_NUMBER = 1_000_000  # that a function may be given: a width, a number of spaces
# What these make is longer than what they get: up to one argument's length for each character or item of another.
GROWING = frozenset([
    "*", "join", "center", "ljust", "rjust", "zfill", "indent", "wordwrap", "expandtabs", "tojson", "xmlattr",
    "translate", "sum",
])  # fmt: skip
# In a format: a width of a thousand characters and more, or one that an argument gives.
_WIDE = re.compile(r"%[-+ #0]*(\d{4}|\*)|{[^{}]*:[^{}]*(\d{4}|{)")


class TooMuch(Exception):
    """A template takes too long or makes too much."""


class _Meter(threading.local):
    """What is left to the rendering of a thread."""

    def __init__(self) -> None:
        self.left, self.look, self.until = CHARACTERS, CHARACTERS, time.thread_time() + SECONDS


class Bounded(ImmutableSandboxedEnvironment):
    """An environment that counts what its templates do."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(optimized=False, finalize=self._output, **settings)
        self._meter = _Meter()
        self.globals.pop("lipsum")
        self.filters["_joined"] = lambda parts: "".join(map(str, parts))
        self.filters["_part"] = lambda value, *ends: value[slice(*ends)]

    def bound_filters(self) -> None:
        """Count all filters from now on."""
        self.filters = {name: self._counted(name, function) for name, function in self.filters.items()}
        self.filters |= {"_steps": self._steps, "_count": self.count}

    def render(self, template: Template, values: Mapping[str, Any]) -> str:
        """The text that a template writes. Raises TooMuch: it takes longer than `SECONDS` or makes more than
        `CHARACTERS`; and whatever the template raises."""
        self._meter.__init__()  # type: ignore[misc]  # from here on
        return template.render(values)

    def count(self, characters: int) -> None:
        """Take so much from what is left to a rendering."""
        meter = self._meter
        meter.left -= characters
        if meter.left < meter.look:
            meter.look = meter.left - LOOK
            if meter.left < 0:
                raise TooMuch("it makes more text than a conversation has")
            if time.thread_time() > meter.until:
                raise TooMuch(f"it takes longer than {SECONDS:g} s")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A result of `+`, `*`, `**` or `%`."""
        if operator == "+" and type(left) is type(right) is str:
            self.count(len(left) + len(right))
            return left + right
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if numbers and _bits(left) * (max(right, 1) if operator == "**" else 1) + _bits(right) > 4096:
            raise TooMuch("it computes with numbers of thousands of digits")
        self._count_call("" if numbers else operator, (left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A result of a function, a macro or a method."""
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # `str.format` is wrapped
        self._count_call(getattr(function, "__name__", ""), (owner, *args, *kwargs.values()))
        return super().call(context, function, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count_call(name, (*args, *kwargs.values()))
            return function(*args, **kwargs)

        counted.__dict__.update(getattr(function, "__dict__", {}))  # whether it takes the context
        return counted

    def _count_call(self, name: str, args: tuple[Any, ...]) -> None:
        numbers = [abs(value) for value in args if isinstance(value, int)]
        if name and name not in self.intercepted_binops and max(numbers, default=0) > MOST_NUMBER:
            raise TooMuch(f"it gives {name or 'a function'} a number above {MOST_NUMBER:,}")
        sizes = [_size(value) for value in args]
        cost = ITEM + sum(sizes)
        if name == "replace" and len(args) > 2 and all(isinstance(value, str) for value in args[-3:]):
            text, old, new = args[-3:]
            cost += text.count(old) * len(new)
        elif name in GROWING:
            *_, second, first = sorted([0, 0, *sizes, *numbers])
            cost += first * second
        elif name in ("%", "format", "format_map", "strftime_now"):
            form = next((value for value in args if isinstance(value, str)), "")
            if _WIDE.search(form.replace("{{", "")):
                raise TooMuch("it sets the width of a text by thousands")
        self.count(cost)

    def _steps(self, items: Iterable[Any], characters: int) -> Iterator[Any]:
        for item in items:
            self.count(ITEM + characters)
            yield item

    def _output(self, value: Any) -> Any:
        self.count(len(value) if type(value) is str else _size(value))
        return value


def _bits(value: float) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _size(value: Any) -> int:
    """Characters that a value has when it is written out, about; counting ends where a rendering would be refused."""
    size, open_ = 0, [value]
    while open_ and size <= CHARACTERS:
        part = open_.pop()
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, Namespace):
            open_ += part._Namespace__attrs.values()
        elif isinstance(part, dict):
            size += ITEM * len(part)
            open_ += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            size += ITEM * len(part)
            open_ += part
        else:
            size += 1
    return size


def _filter(value: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None)


def _characters(node: nodes.Node) -> nodes.Const:
    """Characters that a block of a template writes each time."""
    return nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)))


class _Counting(NodeTransformer):
    """What makes texts or takes time without a call to the environment becomes a filter of ours."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_steps", _characters(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(_characters(node), "_count")))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), "_joined")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step))
        return _filter(node.node, "_part", *ends)
