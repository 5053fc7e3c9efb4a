"""Containers and package recipes name versions, extras and files that the project has. They are built elsewhere."""

import re
import tomllib

import launch
import pytest
import yaml

FOLDER = launch.ROOT / "containers"
PROJECT = tomllib.loads((launch.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONTAINERS = ("Containerfile", "iwes_mpi.def")


def text(name):
    return (FOLDER / name).read_text("utf-8")


def requirements(*extras):
    """What the project needs: lowest and next major version by name, such as ("1.2", "2") or ("2.0", None)."""
    found = {}
    for requirement in [*PROJECT["dependencies"], *(entry for extra in extras for entry in EXTRAS[extra])]:
        name, low, high = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<(\d+))?", requirement).groups()
        found[name] = (low, high)
    return found


def test_conda_has_what_the_project_needs():
    environment = yaml.safe_load(text("environment.yml"))
    assert (environment["name"], environment["channels"][0]) == ("iwes_mpi", "conda-forge")
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    versions = dict(re.fullmatch(r"([\w-]+?)(?:-base)?>=([\d.]+)", entry).groups() for entry in plain if ">" in entry)
    assert versions.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    (extras,) = (re.fullmatch(r"\.\.\[([\w,]+)\]", entry)[1].split(",") for entry in pip)
    needed = {name: low for name, (low, _) in requirements("mpich", *extras).items()}
    assert versions == {name: low for name, low in needed.items() if name not in ("gymnasium", "mujoco")}, (
        "pip has those"
    )


def test_spack_has_what_the_project_needs():
    source = text("package.py")
    compile(source, "package.py", "exec")
    versions = dict(re.findall(r'depends_on\("(?:py-)?([\w-]+)@([\d.:]+)', source))
    assert versions.pop("python") == PROJECT["requires-python"].removeprefix(">=") + ":"
    assert versions.pop("setuptools") == "77:"
    needed = requirements("plot")
    assert versions == {name: f"{low}:{int(high) - 1 if high else ''}" for name, (low, high) in needed.items()}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_install_what_there_is(name):
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", text(name))
    assert set(extras.split(",")) <= set(EXTRAS)
    (python,) = re.findall(
        r"^(?:from: |arg base=)docker\.io/library/python:3\.(\d+)-slim$", text(name), re.MULTILINE | re.IGNORECASE
    )
    assert int(python) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_both_containers_are_made_alike():
    copied = re.findall(r"^COPY (.*) /src/", text("Containerfile"), re.MULTILINE)
    files = [file for line in copied for file in line.split()]
    section = text("iwes_mpi.def").partition("%files\n")[2].partition("\n\n")[0]
    assert files == [line.split()[0] for line in section.splitlines()]
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(files)
    assert all((launch.ROOT / file).exists() for file in files)
    installed = [re.findall(r"pip install [^\\\n]*'", text(name)) for name in CONTAINERS]
    assert installed[0] == installed[1]
    threads = [set(re.findall(r"\w+_NUM_THREADS=1", text(name))) for name in CONTAINERS]
    assert (
        threads[0]
        == threads[1]
        == set(re.findall(r"\w+_NUM_THREADS=1", (launch.ROOT / "jobs/train.sbatch").read_text()))
    )


def test_the_instructions_of_a_containerfile_are_known():
    instructions = re.findall(r"^(\w+) ", re.sub(r"\\\n.*", "", text("Containerfile")), re.MULTILINE)
    assert set(instructions) <= {"ARG", "FROM", "ENV", "COPY", "RUN", "WORKDIR", "CMD"}
    assert instructions[:2] == ["ARG", "FROM"]
