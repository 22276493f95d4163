"""Chat templates: small programs in Jinja that put a conversation into the form that a model was trained on.

A template comes with a checkpoint, so it is a program of whoever made that: it runs in a sandbox, which lets it format text
and nothing else. It sees what transformers shows to it (`transformers.utils.chat_template_utils`), and nothing that is more
than text, numbers, lists and mappings.
"""

import json
import traceback
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import numpy as np

from ufm._check import require, text


def render(template: str, messages: Any, values: Mapping[str, Any]) -> str:
    """A conversation as text.

    Args:
        template: in Jinja.
        messages: mappings, each with "role" and "content". A key whose value is None is left out, as transformers does;
            reasoning is seen by all of its names.
        values: what else the template sees, by name. `tools` and `documents` are None unless they are given.

    Raises:
        ValueError: messages that are none; a template that is not Jinja, that fails, or that refuses the messages.
    """
    chat = [_reasoned({key: value for key, value in message.items() if value is not None}) for message in _checked(messages)]
    shown = {"messages": _plain("messages", chat), **_plain("values", {"tools": None, "documents": None, **values})}
    try:
        return _environment().from_string(template).render(**shown)
    except _RefusedError as error:
        raise ValueError(
            f"messages: expected a conversation that the chat template takes, got its refusal: {error}"
        ) from error
    # Whatever a template does wrong is the template's fault, a division by zero and a text without end included.
    except Exception as error:
        line = _line(error)
        where = "" if line is None else f" in line {line}"
        raise ValueError(
            f"template: expected a chat template that works, got one that fails{where} ({type(error).__name__}: {error})"
        ) from error


_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that reasoning has in messages, the usual one first."""


def _reasoned(message: dict[Any, Any]) -> dict[Any, Any]:
    """A message with its reasoning under the names that templates read, as transformers fills them in."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _checked(messages: Any) -> list[Mapping[str, Any]]:
    expected = 'a list of messages, each a mapping with "role" and "content"'
    listed = isinstance(messages, list | tuple)
    require(listed and len(messages) > 0, "messages", expected, repr(messages) if not listed else "none")
    for k, message in enumerate(messages):
        require(isinstance(message, Mapping), "messages", expected, f"a {type(message).__name__} in place {k}")
        require("role" in message, "messages", expected, f"no role in place {k}")
    return list(messages)


DEEPEST = 100
"""How deep what a template sees may be nested: far deeper than schemas of tools are."""


def _plain(argument: str, value: Any, depth: int = 0) -> Any:
    """Values in the types of JSON: others have methods that could do something."""
    require(depth <= DEEPEST, argument, f"lists and mappings nested at most {DEEPEST} deep", "more, or one in itself")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(argument, value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {_plain(argument, key): _plain(argument, item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(argument, item, depth + 1) for item in value]
    raise ValueError(f"{argument}: expected text, numbers, lists and mappings, got a {type(value).__name__}")


def _line(error: BaseException) -> int | None:
    """The line of a template in which something went wrong."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


class _RefusedError(Exception):
    """The error of a template on messages that it does not take."""


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %}``, which marks what a model answered: here, its text and nothing else."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block, as a macro that is called at once: names set in it are not seen outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict`, of which a template gets nothing but dictionaries."""

    def __call__(self, *args: Any, **named: Any) -> dict:
        return dict(*args, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict:
        """The method of `dict`."""
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without attributes that Python has a use for."""

    def __init__(*args: Any, **named: Any) -> None:
        # As Jinja has it, so that a name may be "self".
        for name in dict(*args[1:], **named):
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(*args, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace takes no name that begins with an underscore, like {name!r}")


@cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter writes for HTML."""
    separators = None if separators is None else tuple(separators)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise _RefusedError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
