"""The package's rooms: no circles, no arrow back up, MPI and HDF5 in one room each; and nothing names what is gone."""

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest

import iwes_mpi

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    "compiled",
    "settings",
    "mpi",
    "policy",
    "rollouts",
    "method",
    "files",
    "shown",
    "running",
]  # then the programs
PROGRAMS = [
    "train",
    "evaluate",
    "plot",
    "compare",
    "watch",
    "export",
    "supervise",
    "completion",
    "__main__",
]  # then their console scripts
OUTSIDE = ["benchmarks", "jobs", "analysis", "tests"]  # a later one may import from an earlier one


def module_name(path: Path) -> str:
    """``iwes_mpi.mpi.world`` of iwes_mpi/mpi/world.py, ``iwes_mpi.mpi`` of iwes_mpi/mpi/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PACKAGE = {module_name(path): path for path in sorted((ROOT / "iwes_mpi").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in PACKAGE.items()}


def outside(folder: str) -> Iterator[tuple[Path, str]]:
    """Every Python file and notebook of a folder outside the package, and its source."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.read_text()
    for path in sorted((ROOT / folder).glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield path, "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, str | None]]:
    """What some statements import: (module, None), or (module, name) for ``from module import name``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to where it stands"
            yield from ((node.module or "", alias.name) for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: none in functions, none for type checkers only."""
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        yield node
        queue += ast.iter_child_nodes(node)


def arrows(nodes: Iterator[ast.AST]) -> set[str]:
    """The modules that are imported; of ours, the module itself where a name is one."""
    found = set()
    for module, name in imported(nodes):
        submodule = f"{module}.{name}"
        found.add(submodule if submodule in PACKAGE else module)
    return found


ARROWS = {name: arrows(ast.walk(tree)) for name, tree in TREES.items()}


def room(module: str) -> int:
    """The place of a module's room in the order; the programs are last."""
    part = module.split(".")[1]
    if part in (*PROGRAMS, "scripts"):
        return len(ROOMS) + (part == "scripts")
    assert part in ROOMS, f"{module} is in none of the rooms"
    return ROOMS.index(part)


# -- the package ---------------------------------------------------------------------------------------------


def test_there_are_no_circles() -> None:
    """Not even by imports inside functions, or for type checkers; `iwes_mpi` itself hands out names of its rooms."""
    graph = {name: found & PACKAGE.keys() - {"iwes_mpi"} for name, found in ARROWS.items() if name != "iwes_mpi"}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # raises CycleError, naming the circle


def test_no_room_imports_from_a_later_one() -> None:
    free = {"iwes_mpi", "iwes_mpi.version"}  # anyone may ask for the version
    up = [
        f"{name} → {other}"
        for name, found in ARROWS.items()
        for other in found & PACKAGE.keys() - free
        if name not in free and room(other) > room(name)
    ]
    assert not up
    handed_out = {f"iwes_mpi.{home}" for home in iwes_mpi._HOMES.values()}
    assert ARROWS["iwes_mpi"] & PACKAGE.keys() == {"iwes_mpi.version", *handed_out}


def test_programs_do_not_import_each_other() -> None:
    programs = {f"iwes_mpi.{name}" for name in PROGRAMS}
    assert programs <= PACKAGE.keys()
    others = {name: found & programs for name, found in ARROWS.items() if name != "iwes_mpi.scripts"}
    assert not [(name, found) for name, found in others.items() if found]


@pytest.mark.parametrize(("library", "home"), [("mpi4py", "mpi"), ("h5py", "files")])
def test_a_library_is_known_in_one_room_only(library: str, home: str) -> None:
    users = {name for name, found in ARROWS.items() if any(other.split(".")[0] == library for other in found)}
    assert users
    assert all(name.startswith(f"iwes_mpi.{home}.") for name in users), users


def test_who_reads_runs_loads_neither_mpi_nor_compiled_code() -> None:
    """What importing plot, watch and `open_run` loads, through all that is imported with them."""
    for begin in ("iwes_mpi.plot", "iwes_mpi.watch", "iwes_mpi.files.run", "iwes_mpi.settings.command_line"):
        seen, queue = set(), [begin]
        while queue:
            module = queue.pop()
            if module not in seen:
                seen.add(module)
                queue += arrows(at_import(TREES[module])) if module in TREES else []
        libraries = {module.split(".")[0] for module in seen}
        assert not libraries & {"mpi4py", "numba", "mujoco", "gymnasium", "matplotlib"}, begin


def test_threads_are_settled_before_numpy_is_loaded() -> None:
    """NumPy's libraries read the number of threads when they load: a program's first import of ours sets it."""
    for name in ("train", "evaluate", "export", "running.maximize"):
        first, *_ = (
            other
            for node in TREES[f"iwes_mpi.{name}"].body
            for other in sorted(arrows(iter([node])))
            if other == "numpy" or (other.startswith("iwes_mpi.") and other != "iwes_mpi.mpi.signals")
        )
        assert first == "iwes_mpi.mpi.process", name
    lines = PACKAGE["iwes_mpi.mpi.process"].read_text().splitlines()
    assert not any("numpy" in line for line in lines)
    assert arrows(at_import(TREES["iwes_mpi.mpi.signals"])) == {"os", "signal", "types"}


def test_what_the_package_hands_out_is_there_and_costs_nothing() -> None:
    """`dir` and the type checker know the same names as the module, which imports none of their homes."""
    assert sorted(iwes_mpi.__all__) == sorted([*iwes_mpi._HOMES, "__version__"])
    assert set(iwes_mpi.__all__) <= set(dir(iwes_mpi))
    assert all(getattr(iwes_mpi, name).__name__ == name for name in iwes_mpi._HOMES)
    assert arrows(at_import(TREES["iwes_mpi"])) == {"importlib", "typing", "iwes_mpi.version"}
    light = {module.split(".")[0] for module in arrows(at_import(TREES["iwes_mpi.scripts"]))}
    assert light == {"os", "sys"}, "a script notes signals before it imports"


# -- what stands outside -------------------------------------------------------------------------------------


def test_the_package_imports_nothing_from_outside() -> None:
    others = {path.stem for folder in OUTSIDE for path, _ in outside(folder)}
    assert not [(name, found & others) for name, found in ARROWS.items() if found & others]


def test_folders_outside_import_downward_and_without_circles() -> None:
    """By the name of the file alone: these folders are no packages. No test imports another test."""
    homes: dict[str, str] = {}
    graph: dict[str, set[str]] = {}
    for folder in OUTSIDE:
        for path, source in outside(folder):
            if path.suffix == ".py" and path.stem != "sitecustomize":
                homes[path.stem] = folder if path.parent == ROOT / folder else "tests"
            key = f"{folder}/{path.name}"
            graph[key] = {module for module, _ in imported(ast.walk(ast.parse(source)))}
    for key, found in graph.items():
        for other in found & homes.keys():
            assert OUTSIDE.index(homes[other]) <= OUTSIDE.index(key.split("/")[0]), f"{key} imports {other}"
            assert not other.startswith("test_"), f"{key} imports {other}"
    known = {Path(key).stem: key for key in graph}
    inner = {key: {known[other] for other in found & homes.keys() if other != "launch"} for key, found in graph.items()}
    assert len(list(TopologicalSorter(inner).static_order())) == len(inner)


def names_of(module: str) -> set[str]:
    """The names that a module of the package has: defined, assigned or imported at its top, or handed out by it."""
    found = {other.rpartition(".")[2] for other in PACKAGE if other.rpartition(".")[0] == module}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found | {name or other for other, name in imported(ast.walk(TREES[module]))}


@pytest.mark.parametrize("folder", OUTSIDE)
def test_what_stands_outside_names_only_what_is_there(folder: str) -> None:
    """Also in benchmarks and notebooks, which no test runs as a whole."""
    missing = []
    for path, source in outside(folder):
        for module, name in imported(ast.walk(ast.parse(source))):
            if module.split(".")[0] == "iwes_mpi" and (
                module not in PACKAGE or (name is not None and name not in names_of(module))
            ):
                missing.append(f"{path.name}: {module} {name or ''}")
    assert not missing


# -- documentation -------------------------------------------------------------------------------------------


def exists(name: str) -> object:
    """What an `iwes_mpi.…` name stands for."""
    module = name
    while module not in PACKAGE:
        module = module.rpartition(".")[0]
    found: object = importlib.import_module(module)
    for part in name.removeprefix(module).split(".")[1:]:
        found = getattr(found, part)
    return found


def test_every_name_of_the_page_exists() -> None:
    for name in re.findall(r"`(iwes_mpi(?:\.\w+)+)`", (ROOT / "docs/architecture.md").read_text()):
        exists(name)


def test_the_walk_passes_only_what_exists() -> None:
    """Each `iwes_mpi.room.module.name` of the walk in docs/architecture.md, from the program to eq. 3 and back."""
    text = (ROOT / "docs/architecture.md").read_text()
    _, heading, rest = text.partition("## A walk from train to eq. 3 and back\n")
    assert heading, "the walk is missing"
    steps = re.findall(r"`(iwes_mpi(?:\.\w+)+)`", rest.partition("\n## ")[0])
    assert steps[0] == "iwes_mpi.train.train"
    assert "iwes_mpi.method.estimator.Estimator.estimate" in steps, "which is eq. 3"
    for step in steps:
        assert callable(exists(step)), step
    passed = [name.split(".")[1] for name in steps]
    assert len(set(passed)) <= 6, "rooms to keep in mind"
