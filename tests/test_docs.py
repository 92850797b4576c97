"""Do the pages say what is true? Commands, options, links, pictures and environment variables named in the README and
docs exist in the program, and the README's two commands are the ones that CI runs.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from polyfield.scenes.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
START = (
    "pip install -c constraints.txt . && polyfield train demo",
    "pip install -c constraints.txt '.[test]' && pytest",
)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def targets(page: Path) -> list[str]:
    """Link and picture targets that are files."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [t.split("#")[0] for t in found if not re.match(r"[a-z]+:|#", t)]


def commands() -> list[str]:
    """Calls of `polyfield` in shell blocks, without comments."""
    lines = [
        line.split(" #")[0].strip() for page in PAGES for block in blocks(page, "bash") for line in block.split("\n")
    ]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("polyfield ")]


@cache
def help_of(command: str) -> str:
    program = "import sys; from polyfield.scenes.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_shows_the_two_commands_first_and_in_blocks_of_their_own() -> None:
    assert [block.strip() for block in blocks(README, "bash")][:2] == list(START)


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = ROOT / ".ci/run"
    done = subprocess.run(["bash", script, "--commands"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == list(START)
    assert not [command for command in START if command in script.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [t for t in targets(page) if not (page.parent / t).exists()] == []


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs/index.md"
    linked = {(index.parent / t).resolve() for t in targets(index)} | {index}
    assert [p.name for p in (ROOT / "docs").rglob("*.md") if p not in linked] == []


def test_pages_name_commands_that_exist() -> None:
    assert commands()
    assert {line.split()[1] for line in commands()} <= set(COMMANDS)


def test_pages_name_every_command() -> None:
    text = README.read_text()
    assert [name for name in COMMANDS if f"polyfield {name}" not in text] == []


def test_pages_name_options_that_exist() -> None:
    named = {(line.split()[1], option) for line in commands() for option in re.findall(r"--[a-z][a-z-]*", line)}
    assert named
    assert [f"{command} {option}" for command, option in sorted(named) if option not in help_of(command)] == []


def test_environment_variables_are_those_of_the_code() -> None:
    code = "".join(p.read_text() for folder in ("fields", "scenes") for p in (ROOT / folder).rglob("*.py"))
    used = set(re.findall(r"environ(?:\.get)?[(\[]\s*\"(POLYFIELD_[A-Z_]+)\"", code))
    documented = set(re.findall(r"`(POLYFIELD_[A-Z_]+)`", (ROOT / "docs/install.md").read_text()))
    assert used == documented


def test_python_blocks_import_names_that_exist() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            tree = ast.parse(block, str(page))
            tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            exec(compile(tree, str(page), "exec"), {})


def test_constraints_pin_every_dependency() -> None:
    """What pyproject names, for the program, its tests and its checks, is pinned for the Python that runs this."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if match := re.match(
            r"([\w.-]+)==([\w.]+)(?:; python_version (>=|<) \"3\.11\"|; sys_platform == \"linux\")?$", line
        ):
            if match[3] is None or (match[3] == ">=") == (sys.version_info >= (3, 11)):
                assert match[1].lower() not in pinned, line
                pinned[match[1].lower()] = match[2]
        else:
            assert not line or line.startswith("#"), line
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r"^(?:dependencies|test|dev) = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    assert len(wanted) == 3
    names = {re.split(r"[\[>=<;]", name)[0].lower() for text in wanted for name in re.findall(r'"([^"]+)"', text)}
    assert {"torch", "pytest", "ruff"} <= names <= set(pinned)


def test_changelog_has_a_place_for_what_comes() -> None:
    assert re.search(r"^## Unreleased$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_figures_of_the_readme_say_how_they_were_measured() -> None:
    text = README.read_text()
    assert "TO BE MEASURED" not in text
    table = text.partition("<!-- figures: begin -->")[2].partition("<!-- figures: end -->")[0]
    rows = [row.strip("|").split("|") for row in table.strip().splitlines()[2:]]
    assert rows
    assert [row[0] for row in rows if len(row) != 3 or "`" not in row[2]] == []
