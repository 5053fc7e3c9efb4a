"""The trail: checkpoints kept on the way, spread evenly over the whole run (``--keep-checkpoints``)."""

import os
import shutil
from pathlib import Path

from iwes_mpi.files.disk import sync

TRAIL = "checkpoints"  # their directory in a run's


def trail(run_dir: Path) -> dict[int, Path]:
    """The checkpoints that a run has kept on its way, by iteration, in order."""
    found = {}
    for path in (run_dir / TRAIL).glob("iteration-*.h5"):
        number = path.stem.removeprefix("iteration-")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def superfluous(iterations: list[int], keep: int) -> list[int]:
    """Which of some iterations to drop so that `keep` are left, spread evenly over the run so far.

    The first and the last stay. Of the others, time and again that one goes whose neighbors are closest together
    (the earliest of several), so that no gap is much wider than another, however long the run will be.

    Parameters
    ----------
    iterations : list of int
        In order.
    keep : int
        At least 1: with 1 only the last stays.
    """
    left, dropped = list(iterations), []
    while len(left) > keep:
        gaps = [after - before for before, after in zip(left, left[2:], strict=False)]
        place = 0 if keep == 1 or not gaps else 1 + gaps.index(min(gaps))
        dropped.append(left.pop(place))
    return dropped


def extend_trail(run_dir: Path, newest: Path, iteration: int, keep: int) -> None:
    """Add a file to a run's trail, all at once, and thin it. Where it can be, it is a second name of the same file."""
    folder = run_dir / TRAIL
    folder.mkdir(exist_ok=True)
    draft = folder / "new"
    draft.unlink(missing_ok=True)
    try:
        os.link(newest, draft)
    except OSError:  # a file system without hard links
        shutil.copyfile(newest, draft)
        sync(draft)
    os.replace(draft, folder / f"iteration-{iteration:06d}.h5")
    kept = trail(run_dir)
    for old in superfluous(list(kept), keep):
        kept[old].unlink()
    sync(folder)
