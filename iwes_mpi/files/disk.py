"""Writing files so that they survive whatever is killed."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, all at once."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, "utf-8")
    sync(draft)
    os.replace(draft, path)
    sync(path.parent)
