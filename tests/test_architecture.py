"""The house: which room may know which other, and that no two modules need each other. ``docs/architecture.md`` says why."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sb3_shm

ROOT = Path(sb3_shm.__file__).parent
# What each part may import besides itself; a new edge is a decision, to be written here
MAY_IMPORT = {
    "files": set(),
    "envs": set(),
    "memory": {"files"},
    "training": {"files", "memory"},
    "policies": {"memory", "training"},
    "shm_ppo": {"files", "memory", "policies", "training"},
    "shm_sac": {"files", "memory", "policies", "training"},
    "callbacks": {"files", "memory", "policies", "shm_ppo", "shm_sac", "training"},
    "sharing": {"envs", "files", "memory", "policies", "shm_ppo", "shm_sac", "training"},
    "imitation": {"memory", "policies", "shm_ppo", "shm_sac", "training"},
    "rllib": {"memory", "policies", "shm_ppo", "training"},
    "watch": {"callbacks", "memory", "shm_ppo", "shm_sac", "training"},
    "zoo": {"callbacks", "envs", "files", "memory", "sharing", "shm_ppo", "shm_sac", "training", "watch"},
}


def imports() -> dict[str, set[str]]:
    """Each module, and the modules of the package that it imports, within functions, too; the package itself left out."""
    paths = {".".join(("sb3_shm", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                module = node.module or ""
                found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in names else module for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = {module for module in found if module in names} - {"sb3_shm", name}
    return graph


def part(module: str) -> str:
    return module.split(".")[1]


def test_parts_import_what_they_may():
    graph = imports()
    del graph["sb3_shm"]  # which offers names of all parts
    assert {part(module) for module in graph} == MAY_IMPORT.keys()
    for module, imported in graph.items():
        for other in imported:
            assert part(other) == part(module) or part(other) in MAY_IMPORT[part(module)], f"{module} imports {other}"


def test_no_two_modules_need_each_other():
    TopologicalSorter(imports()).prepare()  # CycleError names them


def test_parts_are_in_order():
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


# Each algorithm reads from top to bottom
LONG = {"shm_ppo/shm_ppo.py": 499, "shm_sac/shm_sac.py": 566}


def test_no_module_is_long():
    for path in ROOT.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONG.get(path.relative_to(ROOT).as_posix(), 300), f"{path} has {lines} lines"


def test_modules_say_what_they_are():
    for path in ROOT.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
