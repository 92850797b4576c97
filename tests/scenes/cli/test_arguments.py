from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from polyfield.fields.errors import ConfigError
from polyfield.scenes.cli.arguments import parse
from polyfield.scenes.cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    """Kind."""
    steps: int | None = None
    """Steps of it."""

    def __post_init__(self):
        if self.steps == 0:
            raise ConfigError("steps must be at least 1; got 0")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Does a thing.

    Examples:
      polyfield thing x
    """

    scene: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SCENE")]
    """The scene."""
    out: Path | None = None
    """Where to."""
    seconds: float | None = None
    """Seconds (s)."""
    loud: bool = False
    """Loud."""
    inner: tyro.conf.OmitArgPrefixes[Inner] = field(default_factory=Inner)


def read(*arguments, default=None):
    return parse(Command, arguments, "polyfield thing", default=default)


def test_values_have_their_types():
    found = read("x", "--out", "a/b", "--seconds", "2.5", "--loud", "--steps", "7", "--kind", "b")
    assert found == Command(scene="x", out=Path("a/b"), seconds=2.5, loud=True, inner=Inner(kind="b", steps=7))


def test_defaults_may_come_from_elsewhere():
    stored = Command(scene="x", seconds=3.0, loud=True, inner=Inner(steps=5))
    assert read("x", default=stored) == stored
    assert read("x", "--steps", "9", default=stored).inner == Inner(steps=9)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "scene"),
        (["x", "--secnds", "3"], "unrecognized options: --secnds, 3 - did you mean --seconds?"),
        (["x", "--seconds", "abc"], "error parsing --seconds: could not convert string to float: 'abc'"),
        (["x", "--steps", "1.5"], "error parsing --steps: invalid literal for int() with base 10: '1.5'"),
        (["x", "--kind", "c"], "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b')"),
        (["x", "y"], "unrecognized options: y"),
        (["x", "--steps", "0"], "steps must be at least 1; got 0"),
        (["x", "--seconds"], "--seconds"),
    ],
)
def test_wrong_arguments_are_one_line_that_points_to_help(arguments, text, capsys):
    with pytest.raises(UsageError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert text.lower() in message.lower()
    assert message.endswith("; see 'polyfield thing --help'")
    assert "\n" not in message
    assert not set("│╭╰─") & set(message)
    assert capsys.readouterr() == ("", "")


def test_help_shows_defaults_units_and_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("Seconds (s). (default: none)", "--seconds NUMBER", "--out PATH", "SCENE", "  polyfield thing x"):
        assert part in text, part
    assert "{None}" not in text
