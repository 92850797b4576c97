"""How a command's arguments become its dataclass: tyro, with short metavars and errors of one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .errors import OK, UsageError, one_line

C = TypeVar("C")


def parse(command: Callable[..., C], arguments: Sequence[str], prog: str, default: C | None = None) -> C:
    """Build `command` (a dataclass) from arguments; --help prints and leaves with 0.

    Args:
        default: where given, the source of defaults instead of the dataclass's own.

    Raises:
        UsageError: unknown, missing or malformed arguments, in one line.
        SystemExit: after --help.
    """
    caught = io.StringIO()
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(caught), _wide("-h" not in arguments and "--help" not in arguments):
            return tyro.cli(
                command,
                args=list(arguments),
                prog=prog,
                description=inspect.getdoc(command),
                # Without pairs --help is shorter, but a flag whose default is True could only be turned off.
                config=(tyro.conf.FlagCreatePairsOff,) if default is None else (),
                registry=_registry(),
                **keywords,
            )
    except SystemExit as stop:
        if stop.code in (OK, None):
            sys.stderr.write(caught.getvalue())
            raise
        raise UsageError(f"{_condense(caught.getvalue())}; see '{prog} --help'") from None


def _condense(box: str) -> str:
    """The message of tyro's error box, without frame, colour and the help texts that follow it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip().strip("│").strip() for line in plain.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    if len(lines) > 1 and lines[1].startswith("---"):  # without box characters the title is a line of its own
        lines = lines[2:]
    message: list[str] = []
    for line in lines:
        if line.startswith(("Got errors", "For full helptext", "Argument helptext")):
            break
        if not line.startswith(("──", "---")):
            message.append(line)
    text = one_line(" ".join(message)).rstrip(".")
    text = re.sub(r"^Error parsing (?!-)[^:]*: ", "", text)  # the name of a class of ours says nothing to the user
    text = re.sub(r"Perhaps you meant: (--?[\w-]+).*", r"- did you mean \1?", text)
    return text[:1].lower() + text[1:] or "the arguments could not be read"


@contextlib.contextmanager
def _wide(wanted: bool) -> Iterator[None]:
    """Where `wanted`, a terminal so wide that tyro breaks no line of an error text."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop("COLUMNS")
        if wanted and before is not None:
            os.environ["COLUMNS"] = before


_METAVAR = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _registry() -> tyro.constructors.ConstructorRegistry:
    """tyro's rules plus one: `X | None` takes an X (tyro's own also takes the word None, and shows `{None}|X`)."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        kinds = [t for t in typing.get_args(info.type) if t is not types.NoneType]
        if typing.get_origin(info.type) not in (typing.Union, types.UnionType) or len(kinds) != 1:
            return None
        kind = kinds[0]
        if kind not in _METAVAR or kind is info.type:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=_METAVAR[kind],
            instance_from_str=lambda words: kind(words[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    return registry
