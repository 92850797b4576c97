"""What `polyfield` does with its first argument and with errors. The exit codes are part of the interface."""

import os
import subprocess
import sys

import pytest

import polyfield.scenes.cli as cli
from polyfield.fields.errors import ConfigError, FormatError, NativeError, ShapeError
from polyfield.scenes.cli.errors import Interrupted


def raising(error):
    def command(arguments):
        raise error

    return command


@pytest.fixture
def failing(monkeypatch):
    def install(error, command="info"):
        monkeypatch.setitem(cli.COMMANDS, command, raising(error))
        return cli.main([command, "x"])

    return install


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_and_exit_code(arguments, capsys):
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert "130 interrupted" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_without_a_command_help_is_shown_and_the_code_is_2(capsys):
    assert cli.main([]) == 2
    assert "usage: polyfield COMMAND" in capsys.readouterr().out


def test_version(capsys):
    from polyfield import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"polyfield {__version__}\n"


def test_an_unknown_command_is_one_line_with_a_guess(capsys):
    assert cli.main(["trian", "demo"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("polyfield: error: there is no command 'trian'; did you mean 'train'?")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ConfigError("a\nb"), FormatError("a b"), ShapeError("a b"), NativeError("a b")],
)
def test_errors_of_ours_are_one_line_and_code_2(failing, error, capsys):
    assert failing(error) == 2
    assert capsys.readouterr().err == "polyfield: error: a b\n"


def test_file_system_errors_are_one_line_and_code_2(failing, capsys):
    assert failing(PermissionError(13, "Permission denied", "/x/y")) == 2
    assert capsys.readouterr().err == "polyfield: error: /x/y: Permission denied\n"


def test_a_bug_is_one_line_and_code_1(failing, capsys):
    assert failing(KeyError("surprise")) == 1
    text = capsys.readouterr().err
    assert text == "polyfield: internal error: KeyError: 'surprise' (run again with --debug for the trace)\n"


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train", "try --downscale 2 and see 'polyfield doctor'"),
        ("fit", "shrink the input and see 'polyfield doctor'"),
        ("render", "give a smaller --size and see 'polyfield doctor'"),
        ("edit", "see 'polyfield doctor'"),
    ],
)
def test_lack_of_memory_says_what_to_do(failing, capsys, command, advice):
    lack = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."
    for error in (RuntimeError(lack), MemoryError()):
        assert failing(error, command) == 1
        assert capsys.readouterr().err == f"polyfield: error: not enough memory; {advice}\n"


def test_a_missing_package_is_named(failing, capsys):
    assert failing(ModuleNotFoundError("No module named 'imageio'", name="imageio")) == 1
    assert "the Python package 'imageio' is missing; run 'polyfield doctor'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"),
    [(KeyboardInterrupt(), "interrupted\n"), (Interrupted("saved in x"), "interrupted; saved in x\n")],
)
def test_ctrl_c_is_code_130(failing, error, text, capsys):
    assert failing(error) == 130
    assert capsys.readouterr().err == f"polyfield: {text}"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_anywhere_shows_the_trace(monkeypatch, capsys, place):
    monkeypatch.setitem(cli.COMMANDS, "info", raising(ConfigError("why")))
    arguments = ["info", "x"]
    arguments.insert(place, "--debug")
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("polyfield: error: why\n")


def test_warnings_are_lines_too(monkeypatch, capsys):
    import warnings

    def command(arguments):
        warnings.warn("slow\n  because", RuntimeWarning, stacklevel=1)
        return 0

    monkeypatch.setitem(cli.COMMANDS, "info", command)
    before = warnings.showwarning
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().err == "polyfield: warning: slow because\n"
    assert warnings.showwarning is before


def test_help_needs_neither_torch_nor_numpy():
    """Also the reason why it is quick."""
    code = (
        "import sys\nfrom polyfield.scenes.cli import main\nassert main(['--help']) == 0\n"
        "print([m for m in ('torch', 'numpy', 'tyro', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from polyfield.scenes.cli import main; sys.exit(main(['doctor']))"
    command = f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
