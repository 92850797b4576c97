"""Which rules of the house does a tree break? Each function reads the files under a root and returns its findings as
lines "path: what is wrong"; an empty list means that the rule holds. Nothing is imported, so that a planted tree works.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Ground up. A module may import from its own floor and from those below. "" is polyfield's own `__init__.py`, `fields`
# alone is that of fields. Imports under TYPE_CHECKING are names in annotations, not dependencies.
FLOORS = (
    {""},
    {"fields.errors"},
    {"fields.cache"},
    {"fields.ops"},
    {"fields.base", "fields.geometry", "fields.formats", "fields.spectrum"},
    {"fields.encodings", "fields.networks"},
    {"fields.radiance", "fields.implicit", "fields.surface", "fields.splats", "fields.dynamic"},
    {"fields.render"},
    {"fields.model"},
    {"fields.optim"},
    {"fields.convert"},
    {"fields"},
    {"viewer", "scenes"},
    {"scenes.cli"},
)
LEVEL_OF = {name: level for level, names in enumerate(FLOORS) for name in names}
PACKAGE_FOLDERS = ("fields", "scenes", "viewer")
PYTHON_FOLDERS = (*PACKAGE_FOLDERS, "tests", "benchmarks", "examples")
NATIVE_SUFFIXES = {".h", ".cpp", ".cu"}
MAX_LINES = {".py": 600, ".h": 800, ".cpp": 800, ".cu": 800}
MAX_FUNCTION_LINES = 80  # without the docstring


def python_files(root: Path, *folders: str) -> list[Path]:
    return sorted(
        p for f in folders or PYTHON_FOLDERS for p in (root / f).rglob("*.py") if "__pycache__" not in p.parts
    )


def native_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / "cuda").rglob("*") if p.suffix in NATIVE_SUFFIXES)


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """The part of the house that a module belongs to: `fields.ops.march` -> `fields.ops`, `scenes.demo` -> `scenes`."""
    first, _, rest = module.partition(".")
    if first == "fields" and rest:
        return f"fields.{rest.partition('.')[0]}"
    return "scenes.cli" if first == "scenes" and rest.partition(".")[0] == "cli" else first


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every relative import that a package file may run, those inside functions too."""
    package = module_of(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(), str(path))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    never_run = {id(child) for block in blocks for statement in block.body for child in ast.walk(statement)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0 or id(node) in never_run:
            continue
        base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            target = root.joinpath(*base, alias.name)
            is_module = target.with_suffix(".py").exists() or (target / "__init__.py").exists()
            yield node.lineno, ".".join([*base, alias.name] if is_module else base)


def upward_imports(root: Path) -> list[str]:
    found = []
    for path in python_files(root, *PACKAGE_FOLDERS):
        unit = unit_of(module_of(path, root))
        if unit not in LEVEL_OF:
            found.append(f"{path.relative_to(root)}: {unit} has no floor; give it one in {Path(__file__).name}")
            continue
        for line, module in imports_of(path, root):
            target = unit_of(module)
            if target != unit and LEVEL_OF.get(target, len(FLOORS)) > LEVEL_OF[unit]:
                found.append(f"{path.relative_to(root)}:{line}: {unit} stands below {target} and imports it")
    return found


def absolute_imports(root: Path) -> list[str]:
    """Inside the package imports are relative; outside they say `polyfield`, never the folder's bare name."""
    found = []
    for path in python_files(root):
        inside = path.relative_to(root).parts[0] in PACKAGE_FOLDERS
        wrong = {"polyfield", *PACKAGE_FOLDERS} if inside else set(PACKAGE_FOLDERS)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            rule = "relative imports inside the package" if inside else "import it as polyfield.*"
            found += [
                f"{path.relative_to(root)}:{node.lineno}: imports {name}; {rule}"
                for name in names
                if name.partition(".")[0] in wrong
            ]
    return found


def long_files(root: Path) -> list[str]:
    counted = [(p, len(p.read_text().splitlines())) for p in (*python_files(root), *native_files(root))]
    return [
        f"{p.relative_to(root)}: {n} lines, at most {MAX_LINES[p.suffix]}"
        for p, n in counted
        if n > MAX_LINES[p.suffix]
    ]


def long_functions(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                where = f"{path.relative_to(root)}:{node.lineno}"
                found.append(f"{where}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    return found


def silent_files(root: Path) -> list[str]:
    """Every file says first which question it answers. An empty `__init__.py` needs no words, and the name of a test
    file says whose behaviour its tests state."""
    found = []
    for path in python_files(root):
        if path.name.startswith("test_"):
            continue
        text = path.read_text()
        if (text.strip() or path.name != "__init__.py") and not ast.get_docstring(ast.parse(text)):
            found.append(f"{path.relative_to(root)}: no docstring at the top")
    for path in native_files(root):
        if not path.read_text().startswith("//"):
            found.append(f"{path.relative_to(root)}: no comment at the top")
    return found


def operators(root: Path) -> list[str]:
    """Names of the modules in fields/ops that define a torch operator."""
    modules = sorted((root / "fields/ops").glob("[!_]*.py"))
    return [p.stem for p in modules if re.search(r"\bdefine\(", p.read_text())]


def incomplete_operators(root: Path, native: dict[str, str] | None = None) -> list[str]:
    """Operators without reference, test, header or CPU loops. `native`: operator -> stem of the native files."""
    found = []
    for name in operators(root):
        stem = (native or {}).get(name, name)
        text = (root / f"fields/ops/{name}.py").read_text()
        if not re.search(r"^def \w*_reference\(", text, re.MULTILINE):
            found.append(f"fields/ops/{name}.py: no function *_reference")
        needed = (
            f"tests/fields/ops/test_{name}.py",
            f"cuda/include/polyfield/{stem}.h",
            f"cuda/cpu/{stem}_cpu.cpp",
        )
        found += [f"{need}: missing for operator {name}" for need in needed if not (root / need).is_file()]
    return found


def orphan_sources(root: Path) -> list[str]:
    """CPU loops whose functions no operator module names, and headers that nothing includes."""
    wrappers = "".join(p.read_text() for p in python_files(root, "fields"))
    included = "".join(p.read_text() for p in native_files(root))
    found = []
    for path in sorted((root / "cuda/cpu").glob("*_cpu.cpp")):
        names = {re.sub(r"_(f32|f64)?$", "", name) for name in re.findall(r"\bpf_\w+", path.read_text())}
        if not any(name in wrappers for name in names):
            found.append(f"{path.relative_to(root)}: no module in fields calls it")
    for path in native_files(root):
        if path.suffix == ".h" and not re.search(rf'#include "(polyfield/)?{re.escape(path.name)}"', included):
            found.append(f"{path.relative_to(root)}: nothing includes it")
    return found


def hidden_packages(root: Path) -> list[str]:
    """`cuda/__init__.py` would hide NVIDIA's `cuda` package in every process started in the checkout."""
    return [f"{p.relative_to(root)}: must not exist" for p in sorted((root / "cuda").rglob("__init__.py"))]


def broken_links(root: Path) -> list[str]:
    """src/polyfield/<name> are relative links to <name>: what makes one tree work installed, editable and checked."""
    found = []
    for name in (*PACKAGE_FOLDERS, "cuda"):
        link = root / "src/polyfield" / name
        if (root / name).is_dir() and not (link.is_symlink() and str(link.readlink()) == f"../../{name}"):
            found.append(f"src/polyfield/{name}: must be a link to ../../{name}")
    return found


def confusing_tests(root: Path) -> list[str]:
    """Test files with one base name would be confusing in reports, and a helper must not look like a test."""
    tests = sorted((root / "tests").rglob("test_*.py"))
    names = [p.name for p in tests]
    found = [f"{p.relative_to(root)}: another test file has this name" for p in tests if names.count(p.name) > 1]
    return found + [f"{p.relative_to(root)}: tests do not lie in helpers" for p in tests if "helpers" in p.parts]
