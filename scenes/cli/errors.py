"""What the user is told when something goes wrong: one line and an exit code.

0 done; 1 internal error; 2 bad input or usage; 130 interrupted. Whatever Polyfield itself raises (`fields.errors`) and
whatever the file system says is the input's fault; anything else is a bug of ours, and the line says how to see more.
"""

from __future__ import annotations

OK, INTERNAL, USAGE, INTERRUPTED = 0, 1, 2, 130
_SMALLER = {
    **dict.fromkeys(("train", "convert", "compare", "eval"), "try --downscale 2"),
    "fit": "shrink the input",
    "render": "give a smaller --size",
}


class UsageError(ValueError):
    """The arguments of a command are wrong or do not fit together."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after the work was saved; the text says where and how to go on."""


def describe_error(error: BaseException, command: str) -> tuple[str, int]:
    """(one line for the user, exit code) of an exception that a command raised."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{'; ' + one_line(str(error)) if str(error) else ''}", INTERRUPTED
    if isinstance(error, UsageError) or _is_ours(error):
        return f"error: {one_line(str(error))}", USAGE
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"error: {error.filename}: {error.strerror}", USAGE
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("polyfield"):
        return f"error: the Python package {error.name!r} is missing; run 'polyfield doctor'", INTERNAL
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        advice = f"{_SMALLER[command]} and " if command in _SMALLER else ""
        return f"error: not enough memory; {advice}see 'polyfield doctor'", INTERNAL
    kind = type(error).__name__
    return f"internal error: {kind}: {one_line(str(error))} (run again with --debug for the trace)", INTERNAL


def one_line(text: str) -> str:
    """`text` with all white space, line ends included, as single blanks."""
    return " ".join(text.split())


def _is_ours(error: BaseException) -> bool:
    try:
        from ...fields.errors import ConfigError, FormatError, NativeError, ShapeError
    except Exception:  # torch itself is broken: then no error of ours can have been raised
        return False
    return isinstance(error, (ConfigError, FormatError, NativeError, ShapeError))
