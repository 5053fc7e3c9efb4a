"""What the documentation says of files, commands and pages is what there is."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

from iwes_mpi.files.columns import POPULATION, TABLES
from iwes_mpi.settings.command_line import build_parser
from iwes_mpi.settings.sources import preset_names

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "jobs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TYPES = {"i8": "int64", "f8": "float64", "u8": "uint64", "u1": "uint8"}


def rows(text, heading):
    """The rows of the table under a heading, cells without backquotes."""
    section = text.partition(f"### `/{heading}`")[2].partition("\n#")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.parametrize("table", [*TABLES, "population"])
def test_the_columns_of_the_file_format_are_those_that_are_declared(table):
    found = rows((ROOT / "docs" / "file-format.md").read_text("utf-8"), table)
    columns = TABLES.get(table, POPULATION)
    if table == "population":
        assert {row[0] for row in found} == set(columns)
        return
    declared = [
        [name, TYPES[column.dtype], "" if column.units == "1" else column.units, column.long_name]
        for name, column in columns.items()
    ]
    assert found == declared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_presets_exist(page):
    """Every flag in a command that starts training, and every preset."""
    text = page.read_text("utf-8")
    flags = set(build_parser()._option_string_actions)
    for command in re.findall(r"iwes_mpi\.train([^\n`]*)", text):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", command.partition("#")[0]):
            assert flag in flags, f"{page.name}: {flag}"
    for preset in re.findall(r"--preset ([a-z0-9-]+)", text):
        assert preset in preset_names(), f"{page.name}: {preset}"


def commands(page):
    """What the console blocks of a page start: pairs of the program's module and its arguments."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^\$ (.*)", re.sub(r"\\\n\s*", " ", block), flags=re.MULTILINE):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.wordchars += "$[],{}%:"
            words = list(lexer)
            for at, word in enumerate(words):
                script = re.fullmatch(r"iwes-([a-z]+)", word)
                if script or re.match(r"-m iwes_mpi\.", " ".join(words[at : at + 2])):
                    module, rest = (f"iwes_mpi.{script[1]}", at + 1) if script else (words[at + 1], at + 2)
                    yield (
                        module,
                        list(
                            itertools.takewhile(
                                lambda word: word != "--" and not set(word) <= set(";&|<>"), words[rest:]
                            )
                        ),
                    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page):
    for module, arguments in commands(page):
        if "--help" not in arguments:
            given = vars(importlib.import_module(module).build_parser().parse_args(arguments))
            if str(given.get("config", "")).startswith("jobs/"):
                assert (ROOT / given["config"]).is_file()


def test_commands_are_found():
    found = [command for page in PAGES for command in commands(page)]
    assert {f"iwes_mpi.{name}" for name in ("train", "evaluate", "plot", "watch", "export")} <= {
        name for name, _ in found
    }
    assert ("iwes_mpi.plot", ["runs/cheetah", "runs/es", "-o", "figure.png"]) in found, "of a plain line"
    assert any("--env-kwargs" in arguments and '{"goal": 3}' in arguments for _, arguments in found), "with quotes"
    assert (
        "iwes_mpi.evaluate",
        ["$f", "--episodes", "1", "--video", "${f%.h5}.mp4", "--video-seconds", "4"],
    ) in found, "within a loop"
    assert any(arguments[-2:] == ["--keep-checkpoints", "6"] for _, arguments in found), "over two lines"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
