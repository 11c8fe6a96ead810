"""The import graph of models/, ood/ and the scripts: no circle, no import that climbs.

Floors are those of docs/architecture.md. A module may import its own part and lower floors.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. Parts on one floor do not know each other.
FLOORS = (
    ("ood.config", "models"),
    ("ood.metrics", "ood.distributed"),
    ("ood.metrics_released",),
    ("ood.cli",),
    ("ood.files", "ood.cache"),
    ("ood.outputs",),
    ("ood.data", "ood.statistics", "ood.provenance"),
    ("ood.detectors",),
    ("ood.losses", "ood.deployment"),
    ("ood.training", "ood.compat"),
    ("ood.evaluation",),
    ("ood.methods",),
    ("scripts",),
)
ROOT_MODULES = 10
LONGEST_LINE = 120


def sources() -> dict[str, Path]:
    """{module name: file} of models/, ood/, the scripts at the top level and scripts/."""
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    files += [path for folder in ("models", "ood") for path in (ROOT / folder).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of this repository that a module imports, anywhere in its code."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in known else base)
    return {name for name in found if name in known and name != module}


def graph() -> dict[str, set[str]]:
    known = sources()
    edges = {module: imports(module, path, known) for module, path in known.items()}
    for module, targets in edges.items():  # a module may name the face of its own package
        edges[module] = {
            target
            for target in targets
            if not (module.startswith(target + ".") and known[target].name == "__init__.py")
        }
    return edges


def part(module: str) -> str:
    words = module.split(".")
    if words[0] == "ood" and len(words) > 1:
        return ".".join(words[:2])
    return words[0] if words[0] in ("models", "ood") else "scripts"


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other: what is left when leaves are taken away, again and again."""
    left = {module: set(targets) for module, targets in edges.items()}
    while leaves := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in leaves}
    while roots := left.keys() - {target for targets in left.values() for target in targets}:
        left = {module: targets for module, targets in left.items() if module not in roots}
    return [sorted(left)] if left else []


def test_no_circles():
    assert circles(graph()) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_import_climbs():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    climbing = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if part(module) != part(target)
        and "ood" not in (part(module), part(target))
        and floor[part(target)] >= floor[part(module)]
    ]
    assert not climbing, "\n".join(climbing)


def test_networks_and_library_do_not_know_each_other():
    assert not [
        (module, target)
        for module, targets in graph().items()
        for target in targets
        if {module.split(".")[0], target.split(".")[0]} == {"models", "ood"}
    ]


def test_nobody_imports_a_script():
    assert not [
        (module, target)
        for module, targets in graph().items()
        for target in targets
        if part(target) == "scripts"
    ]


def test_every_part_has_a_floor():
    assert {part(module) for module in sources()} - {"ood"} == {
        name for names in FLOORS for name in names
    }


def test_few_modules_lie_at_the_root():
    flat = sorted(path.name for path in (ROOT / "ood").glob("*.py") if path.stem != "__init__")
    assert len(flat) <= ROOT_MODULES, flat


def test_no_line_is_over_120_columns():
    files = [*sources().values(), *(ROOT / "tests").rglob("*.py")]
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LONGEST_LINE
    ]
    assert long == []
