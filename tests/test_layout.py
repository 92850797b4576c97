"""Is the tree built as the design says? Rules that code review would have to repeat: floors, names, sizes, links, and
that importing the package does no work. Every rule is also run on a tree where it is broken on purpose.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import layout

ROOT = Path(__file__).resolve().parents[1]

# Operators whose native files are named after the thing and not after the deed.
NATIVE_NAMES = {
    "hash_encode": "hash_grid",
    "factored_encode": "factored_grid",
    "frequency_encode": "frequency",
    "fused_mlp": "mlp",
    "mesh_bvh": "mesh",
}

RULES = {
    "floors": layout.upward_imports,
    "imports": layout.absolute_imports,
    "file length": layout.long_files,
    "function length": layout.long_functions,
    "first words": layout.silent_files,
    "complete operators": lambda root: layout.incomplete_operators(root, NATIVE_NAMES),
    "orphans": layout.orphan_sources,
    "cuda package": layout.hidden_packages,
    "links": layout.broken_links,
    "test names": layout.confusing_tests,
}

# rule, file to plant, its text, what the finding must say
PLANTED = [
    ("floors", "fields/ops/march.py", '"""Doc."""\nfrom ..render import x\n', "fields.ops stands below fields.render"),
    ("floors", "fields/base.py", '"""Doc."""\nfrom . import model\n', "fields.base stands below fields.model"),
    ("floors", "fields/geometry/rays.py", '"""D."""\ndef f():\n    from ...scenes import S\n', "stands below scenes"),
    ("floors", "fields/render/x.py", '"""D."""\nfrom .. import Model\n', "fields.render stands below fields and"),
    ("floors", "scenes/train.py", '"""Doc."""\nfrom .cli import main\n', "scenes stands below scenes.cli"),
    ("floors", "fields/novel.py", '"""Doc."""\n', "fields.novel has no floor"),
    ("imports", "fields/base.py", '"""Doc."""\nimport polyfield.scenes\n', "relative imports inside"),
    ("imports", "scenes/x.py", '"""Doc."""\nfrom fields import base\n', "relative imports inside"),
    ("imports", "tests/test_x.py", '"""Doc."""\nfrom scenes import base\n', "import it as polyfield"),
    ("file length", "fields/base.py", '"""Doc."""\n' + "x = 1\n" * 600, "601 lines"),
    ("file length", "cuda/cpu/x_cpu.cpp", "//\n" * 801, "801 lines"),
    (
        "function length",
        "fields/base.py",
        '"""D."""\ndef f():\n    """Doc."""\n' + "    x = 1\n" * 81,
        "f has 81 lines",
    ),
    ("first words", "fields/base.py", "x = 1\n", "no docstring"),
    ("first words", "tests/helpers/more.py", "x = 1\n", "no docstring"),
    ("first words", "cuda/include/polyfield/x.h", "#pragma once\n", "no comment"),
    ("complete operators", "fields/ops/x.py", '"""D."""\ny = _library.define("x")\n', "no function"),
    ("complete operators", "fields/ops/x.py", '"""D."""\ny = define("x")\n', "tests/fields/ops/test_x.py: missing"),
    ("complete operators", "fields/ops/x.py", '"""D."""\ny = define("x")\n', "polyfield/x.h: missing"),
    ("complete operators", "fields/ops/x.py", '"""D."""\ny = define("x")\n', "cuda/cpu/x_cpu.cpp: missing"),
    ("orphans", "cuda/cpu/x_cpu.cpp", "// D.\nPF_API i64 pf_x_f32(i64 n) {}\n", "no module in fields calls it"),
    ("orphans", "cuda/include/polyfield/x.h", "// D.\n", "nothing includes it"),
    ("cuda package", "cuda/__init__.py", "", "must not exist"),
    ("links", "src/polyfield/scenes/__init__.py", "", "must be a link"),
    ("test names", "tests/fields/test_base.py", '"""Doc."""\n', "another test file"),
    ("test names", "tests/helpers/test_more.py", '"""Doc."""\n', "tests do not lie in helpers"),
]


def small_tree(root: Path) -> Path:
    """The smallest tree that obeys every rule."""
    files = {
        "fields/__init__.py": '"""Doc."""\nfrom .model import Model\n',
        "fields/errors.py": '"""Doc."""\n',
        "fields/base.py": '"""Doc."""\nfrom .errors import x\nfrom . import ops\n',
        "fields/model.py": '"""Doc."""\nfrom .base import x\nfrom .render import y\n',
        "fields/ops/__init__.py": "",
        "fields/ops/march.py": '"""Doc."""\ndef march_reference(): ...\nx = define("march")\ncall("pf_march_f32")\n',
        "fields/render/__init__.py": '"""Doc."""\nif TYPE_CHECKING:\n    from ..model import Model\n',
        "scenes/__init__.py": "",
        "scenes/cli/__init__.py": '"""Doc."""\nfrom .. import train\n',
        "scenes/train.py": '"""Doc."""\nfrom .. import __version__\nfrom ..fields import Model\n',
        "tests/test_base.py": '"""Doc."""\nfrom polyfield.fields import base\n',
        "tests/fields/ops/test_march.py": '"""Doc."""\n',
        "cuda/include/polyfield/march.h": "// Doc.\n",
        "cuda/cpu/march_cpu.cpp": '// Doc.\n#include "polyfield/march.h"\nPF_API i64 pf_march_f32(i64 n) {}\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "src/polyfield").mkdir(parents=True)
    (root / "src/polyfield/fields").symlink_to("../../fields")
    (root / "src/polyfield/cuda").symlink_to("../../cuda")
    return root


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule: str) -> None:
    assert RULES[rule](ROOT) == []


@pytest.mark.parametrize(("rule", "path", "text", "finding"), PLANTED)
def test_planted_violation_is_found(rule: str, path: str, text: str, finding: str, tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    if rule != "links":
        (root / "src/polyfield/scenes").symlink_to("../../scenes")
        assert [line for check in RULES.values() for line in check(root)] == []
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    found = RULES[rule](root)
    assert any(finding in line for line in found), found


def test_native_names_are_of_operators_that_exist() -> None:
    assert set(NATIVE_NAMES) <= set(layout.operators(ROOT))


def run_python(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_polyfield_loads_none_of_its_parts() -> None:
    loaded = run_python("import polyfield, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in loaded if name == "torch" or name.startswith("polyfield.")]


def test_importing_the_parts_does_no_work() -> None:
    code = """
import json, threading, time, warnings
import torch, numpy
start = time.process_time()
import polyfield.fields, polyfield.fields.ops, polyfield.scenes
seconds = time.process_time() - start
from polyfield.fields.ops import _cpu
print(json.dumps({"seconds": seconds, "loads": _cpu.library.cache_info().misses, "threads": threading.active_count(),
                  "cuda": torch.cuda.is_initialized()}))
"""
    state = run_python(code)
    assert state.pop("seconds") < 3.0  # CPU time beyond torch and numpy; about 0.5 s measured, mostly schemas
    assert state == {"loads": 0, "threads": 1, "cuda": False}
