"""The command `polyfield`: which subcommands there are, what `--help` says, and what the exit code means.

Nothing heavy is imported here: `polyfield --help` is quick, and `polyfield doctor` starts on a machine where torch, the
native library or any other part is broken. Each subcommand is one file, imported when it is asked for.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from .errors import OK, USAGE, describe_error, one_line

HELP = """\
usage: polyfield COMMAND ...        (polyfield COMMAND --help tells all about one)

Train a neural scene from posed photos, measure it, and make pictures and films of it.

commands:
  train SCENE        train a field from a folder of posed photos, or from the built-in scene 'demo'
  convert MODEL      make a field of another kind that looks like a trained model
  edit MODEL         erase, move or recolour parts of a scene (models of kind grid)
  compare A B        how alike two models of one scene look, with pictures, sizes and speed
  fit INPUT          fit a field to an image, a film, a volume or a mesh
  eval MODEL SCENE   compare a trained model with photos it has not seen
  render MODEL       stills or a film: an orbit, a spiral, or cameras from a file; a fit at any size
  info SCENE         what was found in a folder: cameras, bounds, splits, warnings; or in a fit
  doctor             what this machine can do, and what to do about what is missing

a first session:
  polyfield train demo
  polyfield render runs/demo-hash-1 --orbit 120 --out orbit.mp4

for every command:
  --help             defaults, units and examples
  --debug            also show the full trace of an error
  polyfield --version

exit codes: 0 done; 1 internal error (a bug: run again with --debug); 2 bad input or usage, nothing was changed;
130 interrupted by Ctrl-C (training is saved first)."""


def _train(arguments: Sequence[str]) -> int:
    from .train import run

    return run(arguments)


def _convert(arguments: Sequence[str]) -> int:
    from .convert import run

    return run(arguments)


def _edit(arguments: Sequence[str]) -> int:
    from .edit import run

    return run(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from .compare import run

    return run(arguments)


def _fit(arguments: Sequence[str]) -> int:
    from .fit import run

    return run(arguments)


def _eval(arguments: Sequence[str]) -> int:
    from .eval import run

    return run(arguments)


def _render(arguments: Sequence[str]) -> int:
    from .render import run

    return run(arguments)


def _info(arguments: Sequence[str]) -> int:
    from .info import run

    return run(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from .doctor import run

    return run(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "convert": _convert,
    "edit": _edit,
    "compare": _compare,
    "fit": _fit,
    "eval": _eval,
    "render": _render,
    "info": _info,
    "doctor": _doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0 done, 1 internal error, 2 bad input or usage, 130 interrupted. Never raises; `--debug` prints the
        trace of an error before its line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return OK if arguments else USAGE
    if arguments[0] == "--version":
        from ... import __version__  # pyright: ignore[reportMissingImports]

        print(f"polyfield {__version__}")
        return OK
    if arguments[0] not in COMMANDS:
        return _unknown(arguments[0])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return COMMANDS[arguments[0]](arguments[1:])
        except SystemExit as stop:  # from `arguments.parse`, after --help
            return stop.code if isinstance(stop.code, int) else OK
        except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except BaseException as error:
            if debug:
                traceback.print_exc()
            text, code = describe_error(error, arguments[0])
            print(f"polyfield: {text}", file=sys.stderr)
            return code


def _unknown(name: str) -> int:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    print(f"polyfield: error: there is no command {name!r}; {hint}commands: {', '.join(COMMANDS)}", file=sys.stderr)
    return USAGE


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"polyfield: warning: {one_line(str(message))}", file=sys.stderr)
