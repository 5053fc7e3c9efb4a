"""Run the notebooks and keep what they show: python analysis/execute.py [NOTEBOOK…] (by default all of them).

Each starts from a clean state in a process of its own. Pictures are reduced to 256 colors, since they are committed;
the first of each is also kept in analysis/figures, for the README.
"""

import argparse
import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
TIMEOUT = 300  # s per cell


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell does.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT, record_timing=False, resources=folder).execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # the exact version would change from machine to machine
    return notebook


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Reduce the notebook's pictures to 256 colors."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")
                small = io.BytesIO()
                picture.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
                output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def save_picture(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the notebook's first picture, if it has one, to a file that the README shows."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                path.write_bytes(base64.b64decode(output["data"]["image/png"]))
                return


def main() -> int:
    """Run the notebooks named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", metavar="NOTEBOOK", nargs="*", type=Path, help="[default all]")
    for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb")):
        begin = time.monotonic()
        notebook = execute(path)
        shrink(notebook)
        nbformat.write(notebook, path)
        save_picture(notebook, HERE / "figures" / f"{path.stem}.png")
        print(f"{path.name}: {time.monotonic() - begin:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
