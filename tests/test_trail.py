"""``--keep-checkpoints``: a trail of checkpoints over the whole run, none half-written, that disturbs nothing."""

import os
from pathlib import Path

import launch
import numpy as np
import pytest
from checkpoints import assert_equal, example

from iwes_mpi import open_run
from iwes_mpi.files import checkpoint, trail


def at(iteration, keep):
    """A checkpoint of an iteration."""
    return example(iteration, keep_checkpoints=keep)


@pytest.mark.parametrize("keep", [2, 3, 5, 10, 50])
def test_they_stay_spread_over_the_run_however_long_it_is(keep):
    rng = np.random.default_rng(keep)
    for steps in (np.ones(700, dtype=int), rng.integers(1, 4, 700)):
        kept: list[int] = [0]
        for seen, iteration in enumerate(np.cumsum(steps).tolist(), 2):
            kept.append(iteration)
            for old in trail.superfluous(kept, keep):
                kept.remove(old)
            assert len(kept) == min(keep, seen)
            assert (kept[0], kept[-1]) == (0, iteration)
            even = iteration / (len(kept) - 1)
            assert max(np.diff(kept)) <= max(2.5 * even, 3), "no gap is much wider than those of an even trail"


def test_one_is_the_newest():
    assert trail.superfluous([3, 8, 9], 1) == [3, 8]
    assert trail.superfluous([3], 1) == []


@pytest.mark.parametrize("links", [True, False])
def test_the_trail_holds_what_was_saved(tmp_path, monkeypatch, links):
    if not links:

        def link(*_):
            raise OSError("no hard links here")

        monkeypatch.setattr(os, "link", link)
    for iteration in range(20):
        checkpoint.save(tmp_path, at(iteration, 4))
    kept = trail.trail(tmp_path)
    assert len(kept) == 4
    assert (min(kept), max(kept)) == (0, 19)
    for iteration, path in kept.items():
        assert path.name == f"iteration-{iteration:06d}.h5"
        assert_equal(checkpoint.load(path), at(iteration, 4))
    assert len(list((tmp_path / trail.TRAIL).iterdir())) == 4
    assert_equal(checkpoint.load_newest(tmp_path), at(19, 4))
    checkpoint.save(tmp_path, at(19, 4))  # again, as after a restart
    assert sorted(p.name for p in (tmp_path / trail.TRAIL).iterdir()) == [p.name for p in kept.values()]


class Killed(BaseException):
    """Stands for the death of the process."""


class Fuse:
    """Lets so many calls of the file system pass; before the next one the process is killed."""

    def __init__(self, calls):
        self.left = calls

    def guard(self, function):
        def call(*arguments, **options):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return function(*arguments, **options)

        return call


@pytest.mark.slow
def test_none_is_half_written_whenever_it_is_killed(tmp_path, monkeypatch):
    for calls in range(60):
        run_dir = tmp_path / str(calls)
        run_dir.mkdir()
        for iteration in range(3):
            checkpoint.save(run_dir, at(iteration, 3))
        fuse, finished = Fuse(calls), True
        with monkeypatch.context() as patch:
            for owner, name in ((os, "link"), (os, "replace"), (os, "fsync"), (os, "open"), (Path, "unlink")):
                patch.setattr(owner, name, fuse.guard(getattr(owner, name)))
            try:
                checkpoint.save(run_dir, at(3, 3))
            except Killed:
                finished = False
        for iteration, path in trail.trail(run_dir).items():
            assert_equal(checkpoint.load(path), at(iteration, 3))
        assert checkpoint.load_newest(run_dir).state.iteration in (2, 3)
        checkpoint.save(run_dir, at(4, 3))  # the next one finds nothing in its way
        assert len(list((run_dir / trail.TRAIL).iterdir())) == 3
        if finished:
            assert calls > 8, "the trail takes part"
            return
    raise AssertionError("saving makes more calls than this test foresees")


@pytest.mark.slow
def test_a_run_with_a_trail_is_the_same_run(tmp_path):
    """Through a restart too; and each kept policy can be scored."""
    plain = launch.train(1, *launch.SMALL, "--iterations", "6", "--run-dir", str(tmp_path / "plain"))
    assert plain.code == 0, plain.err
    keep = ["--keep-checkpoints", "3", "--checkpoint-every", "1", "--run-dir", str(tmp_path / "kept")]
    first = launch.train(2, *launch.SMALL, "--iterations", "4", *keep)
    assert first.code == 0, first.err
    second = launch.train(2, "--resume", "--iterations", "6", "--run-dir", str(tmp_path / "kept"))
    assert second.code == 0, second.err
    digests = [open_run(tmp_path / name).iterations["theta_digest"].tolist() for name in ("plain", "kept")]
    assert digests[0] == digests[1]
    kept = trail.trail(tmp_path / "kept")
    assert len(kept) == 3
    assert (min(kept), max(kept)) == (0, 6)
    newest = open_run(tmp_path / "kept").theta
    assert checkpoint.load(kept[6]).state.theta.tobytes() == newest.tobytes()
    scored = launch.run(1, "-m", "iwes_mpi.evaluate", str(kept[0]), "--trust", "--episodes", "2", timeout=60)
    assert scored.code == 0, scored.err
    assert "after 0 iterations" in scored.out
