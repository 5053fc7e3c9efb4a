"""Starting on many ranks: compiled code is kept, written once, loaded by the others, and never a reason to fail."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import launch
import numba
import pytest

from iwes_mpi import open_run
from iwes_mpi.compiled import cache as compile_cache

pytestmark = pytest.mark.mpi

LITTLE = [*launch.SMALL, "--n-pairs", "3", "--min-env-steps", "0", "--iterations", "2"]


def watched_run(ranks: int, run_dir: Path, writes: Path, cache: Path, *extra: str, **variables: str) -> list[list[str]]:
    """A training run; returns a (process, kind, file, …) for each file that was written into a Numba cache."""
    writes.write_text("")
    outcome = launch.program(
        ranks, "watched_cache.py", *LITTLE, *extra, "--run-dir", str(run_dir), timeout=280,
        NUMBA_CACHE_DIR=str(cache), WRITES=str(writes), **variables,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return [line.split() for line in writes.read_text().splitlines()]


def digests(run_dir: Path) -> list[int]:
    return open_run(run_dir).iterations["theta_digest"].to_list()


def written(found: list[list[str]]) -> list[str]:
    return [line[2] for line in found if line[1] == "_save_data"]


def assert_once(found: list[list[str]], at_least: int, nodes: int = 1) -> None:
    """That files were written, none of them twice, and that one rank of a node at most compiled, and nothing twice.

    Nodes that share a cache compile in turns, so one can begin and another go on.
    """
    data = written(found)
    assert len(data) >= at_least, "the test sees no writes"
    assert len(data) == len(set(data)), "a file was written twice"
    compiled = [" ".join(line[2:]) for line in found if line[1] == "compiled"]
    assert len(compiled) >= at_least, "the test sees nothing compiled"
    twice = {what for what in compiled if compiled.count(what) > 1}
    assert not twice, "compiled by several ranks"
    assert len({line[0] for line in found}) <= nodes, "compiled by other ranks too"
    assert all(path.is_file() for path in map(Path, data))


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder with a ``run`` on two nodes that began with one empty ``cache``, and what was written then."""
    folder = tmp_path_factory.mktemp("cold")
    # MPICH can pretend that there are two nodes
    found = watched_run(4, folder / "run", folder / "writes", folder / "cache", MPIR_CVAR_NUM_CLIQUES="2")
    return folder, found


def copied(cold: tuple[Path, list[list[str]]], tmp_path: Path) -> Path:
    """A copy of the cache, to change."""
    return shutil.copytree(cold[0] / "cache", tmp_path / "cache")


def test_two_nodes_with_one_new_cache_write_each_file_once(cold: tuple[Path, list[list[str]]]) -> None:
    assert_once(cold[1], 10, nodes=2)


def test_one_rank_compiles_what_other_settings_need_besides(cold: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    cache = copied(cold, tmp_path)
    options = [
        *("--env-id", "InvertedPendulum-v5", "--max-episode-steps", "50"),  # natively, by the smallest rules
        *("--clip", "3", "--weight-kernel", "precomputed", "--obs-stat-probability", "0.5"),
    ]
    first = watched_run(2, tmp_path / "first", tmp_path / "writes", cache, *options)
    assert_once(first, 5)
    assert "run_episode" in {line[2] for line in first if line[1] == "compiled"}
    # Two nodes that share the cache: loaded by all, written by none.
    again = watched_run(3, tmp_path / "again", tmp_path / "writes", cache, *options, MPIR_CVAR_NUM_CLIQUES="2")
    assert again == []
    assert digests(tmp_path / "again") == digests(tmp_path / "first")


def test_no_cache_is_no_error_and_the_same_bits(cold: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    """NUMBA_CACHE_DIR and the folder for temporary files are files: no directory can be made, not even by root."""
    blocked = tmp_path / "file"
    blocked.touch()
    path = launch.python_path(launch.PROGRAMS / "no_temporary_folder")
    variables = {"PYTHONPATH": path, "BLOCKED": str(blocked)}
    found = watched_run(2, tmp_path / "run", tmp_path / "writes", blocked / "cache", **variables)
    assert written(found) == []
    assert digests(tmp_path / "run") == digests(cold[0] / "run")


def test_who_finds_everything_compiled_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[str] = []

    @contextlib.contextmanager
    def exclusive(directory: Path, name: str) -> Iterator[None]:
        locks.append(name)
        yield

    monkeypatch.setattr(compile_cache, "exclusive", exclusive)

    def called() -> list[str]:
        """The locks that a call takes in a process that has not called the function before."""
        locks.clear()
        function = numba.njit(lambda x: 2 * x + 1)
        function._cache = compile_cache.OnceOnly(function.py_func, tmp_path)
        with compile_cache.Turn(tmp_path):
            assert function(3) == 7
            assert function(3.0) == 7.0
        return list(locks)

    assert called() == ["compile", "save", "save"]  # one turn for both signatures
    assert called() == []
    next(tmp_path.rglob("*.1.nbc")).unlink()
    assert called() == ["compile", "save"]


def test_damaged_files_are_compiled_anew(cold: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    cache = copied(cold, tmp_path)
    files = sorted(cache.rglob("*.nb[ic]"))
    for number, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if number % 2 else b"")
    first, second = (watched_run(1, tmp_path / run, tmp_path / "writes", cache) for run in ("first", "second"))
    assert len(written(first)) > 10, "not noticed"
    assert second == [], "not repaired"
    for run in ("first", "second"):
        assert digests(tmp_path / run) == digests(cold[0] / "run")


def test_the_directory_is_private_and_named_by_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = compile_cache.find_directory("")
    assert directory is not None
    assert directory.parent.parent == tmp_path
    assert directory.name == f"iwes_mpi-{compile_cache.key()}"
    assert directory.parent.stat().st_mode & 0o077 == 0
    assert compile_cache.find_directory(str(tmp_path / "mine")) == tmp_path / "mine" / directory.name
    directory.parent.chmod(0o777)  # others could put code of theirs into it
    assert compile_cache.find_directory("") is None
    assert compile_cache.find_directory("/dev/null/x") is None
    before = compile_cache.key()
    monkeypatch.setattr(compile_cache, "__version__", "other")
    assert compile_cache.key() != before


OTHER = 12_345  # a user


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, where the cache goes if not where it is wanted."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("parent", "base", "directory", "trusted"),
    [  # modes, None: not there yet
        (0o755, None, None, True),  # as on a shared file system on which only I can write
        (0o755, 0o755, None, True),
        (0o755, 0o755, 0o755, True),
        (0o755, 0o777, None, False),  # others could make it, or rename mine
        (0o755, 0o777, 0o700, False),
        (0o755, 0o2770, 0o700, False),  # a group's folder
        (0o755, 0o1777, 0o700, True),  # like /tmp
        (0o755, 0o1777, None, True),
        (0o755, 0o755, 0o777, False),  # code in it may be theirs
        (0o755, 0o755, 0o775, False),
        (0o777, 0o755, 0o755, False),  # others could rename the base
        (0o1777, 0o755, 0o755, True),
    ],
)
def test_a_chosen_directory_that_others_can_change_is_not_used(
    parent: int, base: int | None, directory: int | None, trusted: bool, tmp_path: Path, private: Path
) -> None:
    chosen = tmp_path / "parent" / "chosen"
    expected = chosen / f"iwes_mpi-{compile_cache.key()}"
    for path, mode in ((chosen.parent, parent), (chosen, base), (expected, directory)):
        if mode is not None:
            path.mkdir()
            path.chmod(mode)
    found = compile_cache.find_directory(str(chosen))
    assert found is not None
    assert found == expected or not trusted
    assert found.is_relative_to(private) or trusted
    assert found.stat().st_mode & 0o022 == 0


def test_a_directory_made_for_the_user_is_private_whatever_the_umask(tmp_path: Path, private: Path) -> None:
    before = os.umask(0o002)
    try:
        found = compile_cache.find_directory(str(tmp_path / "one" / "two"))
    finally:
        os.umask(before)
    assert found == tmp_path / "one" / "two" / f"iwes_mpi-{compile_cache.key()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("theirs", ["base", "directory"])
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_chosen_directory_of_another_user_is_not_used(theirs: str, mode: int, tmp_path: Path, private: Path) -> None:
    directory = tmp_path / "chosen" / f"iwes_mpi-{compile_cache.key()}"
    directory.mkdir(parents=True)
    directory.parent.chmod(mode)
    os.chown(directory.parent if theirs == "base" else directory, OTHER, OTHER)
    found = compile_cache.find_directory(str(directory.parent))
    assert found is not None
    assert found.is_relative_to(private)


def test_a_link_in_place_of_the_directory_is_not_used(tmp_path: Path, private: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "chosen"):
        folder.mkdir(mode=0o700)
    (tmp_path / "chosen" / f"iwes_mpi-{compile_cache.key()}").symlink_to(elsewhere)
    found = compile_cache.find_directory(str(tmp_path / "chosen"))
    assert found is not None
    assert found.is_relative_to(private)


def test_the_key_follows_every_source_that_compiles() -> None:
    package = Path(compile_cache.__file__).parents[1]
    compiling = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^@(kernel|strict|exact|intrinsic|overload)|njit", path.read_text(), re.MULTILINE)
    }
    assert compiling >= {
        "method/kernels.py",
        "policy/network.py",
        "policy/obs_stats.py",
        "rollouts/native.py",
        "rollouts/tasks.py",
    }
    for name in compiling:
        assert compile_cache._COMPILES.search((package / name).read_bytes()), name


def test_other_ranks_import_no_more_than_they_need(tmp_path: Path) -> None:
    outcome = launch.program(2, "listed_modules.py", str(tmp_path), *launch.SMALL, "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    root, other = ((tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1))
    assert "h5py" in root
    assert not {"h5py", "pandas", "rich", "matplotlib", "mujoco", "iwes_mpi.files", "iwes_mpi.shown"} & set(other)
    assert not {"pandas", "rich", "matplotlib", "mujoco"} & set(root)
