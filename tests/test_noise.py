"""The noise table: its distribution, its content at any number of ranks, its memory, and slices of it."""

import hashlib
import json

import launch
import numpy as np
import pytest
from scipy import stats

from iwes_mpi.method import kernels
from iwes_mpi.method import noise as noise_module
from iwes_mpi.method.noise import FILL_BLOCK, NoiseTable, choose_size
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

SIZE = 5 * FILL_BLOCK + 123  # not a whole number of blocks


def probe(ranks, seed, size, **environment):
    """What each rank sees of a table made under mpirun."""
    outcome = launch.program(ranks, "noise_probe.py", str(seed), str(size), timeout=60, **environment)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
    assert [line["rank"] for line in lines] == list(range(ranks))
    return lines


# -- distribution --------------------------------------------------------------------------------------------


def test_moments(noise):
    """Of N(0, 1), each within four standard errors: Var(x^p) = (2p − 1)!! − (p!! of even p)²."""
    x = noise.values.astype(float)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs(np.mean(x**power) - mean) < 4 * np.sqrt(variance / x.size), power


def test_kolmogorov_smirnov(noise):
    assert stats.kstest(noise.values[:1_000_000], "norm").pvalue > 1e-3
    assert stats.kstest(noise.values[-500_000:], "norm").pvalue > 1e-3


def test_neighbors_are_uncorrelated(noise):
    """A perturbation's elements are neighbors in the table; blocks are as independent as their elements."""
    x = noise.values.astype(float)
    for lag in (1, 2, 3, 4, 8, 64, 256, 4096, FILL_BLOCK - 1, FILL_BLOCK, FILL_BLOCK + 1):
        assert abs(np.mean(x[:-lag] * x[lag:])) < 4.5 / np.sqrt(x.size - lag), lag


def test_nothing_is_repeated_or_left_out(noise):
    """Blocks differ from one another, and none was left at zero."""
    blocks = noise.values[: noise.values.size // FILL_BLOCK * FILL_BLOCK].reshape(-1, FILL_BLOCK)
    assert np.unique(blocks[:, :4], axis=0).shape[0] == blocks.shape[0]
    assert np.count_nonzero(noise.values) > 0.9999 * noise.values.size
    assert np.abs(noise.values).max() < kernels.MAX_ABS_EPSILON


def test_numbers_beyond_the_bound_of_the_exact_sums_are_refused(world, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_ABS_EPSILON", 3.0)
    with pytest.raises(ValueError, match="seed 4"):
        NoiseTable(world, 4, 100_000)


# -- the same on any number of ranks, once per node ----------------------------------------------------------


@pytest.fixture(scope="module")
def alone(world):
    table = NoiseTable(world, 77, SIZE, with_norms=True)
    return [hashlib.blake2b(array).hexdigest() for array in (table.values, table.prefix)]


@pytest.mark.parametrize(("ranks", "nodes"), [(1, 1), (3, 1), (4, 1), (4, 2)])
def test_content_depends_on_the_seed_alone(alone, ranks, nodes):
    if nodes > 1 and launch.is_open_mpi():
        pytest.skip("simulated nodes are a feature of MPICH")
    environment = {"MPIR_CVAR_NUM_CLIQUES": str(nodes)} if nodes > 1 else {}
    for line in probe(ranks, 77, SIZE, **environment):
        assert line["digest"] == alone
        assert line["nodes"] == nodes
        assert not line["writeable"]


def test_content_is_that_of_the_addressed_generators(world):
    """Block b is drawn from (seed, NOISE_TABLE, 0, b); a table's beginning does not depend on its size."""
    table = NoiseTable(world, 77, SIZE)
    for block in range(6):
        part = table.values[block * FILL_BLOCK : (block + 1) * FILL_BLOCK]
        expected = generator(77, Stream.NOISE_TABLE, 0, block).standard_normal(part.size, dtype=np.float32)
        assert part.tobytes() == expected.tobytes()
    assert (NoiseTable(world, 77, 1000).values == table.values[:1000]).all()
    assert (NoiseTable(world, 78, 1000).values != table.values[:1000]).mean() > 0.99


def test_one_copy_per_node():
    """Four ranks that have each read the whole table: together they own much less than one copy of it."""
    size = 25_000_000
    lines = probe(4, 1, size)
    assert all(line["shared"] > 0.95 * 4 * size for line in lines), "the whole table is in each rank's memory"
    assert sum(line["private"] for line in lines) < 0.1 * 4 * size, lines


# -- size ----------------------------------------------------------------------------------------------------


def test_too_small_for_the_policy(world):
    with pytest.raises(WrongInput, match=r"noise_table_size: 23695 .* 11848 .* 23696"):
        choose_size(Config(noise_table_size=23_695), world, 11_848)
    assert choose_size(Config(noise_table_size=23_696), world, 11_848) == (23_696, None)


def test_too_large_for_the_node(world, monkeypatch):
    monkeypatch.setattr(noise_module, "available_bytes", lambda: 4_000_000)
    with pytest.raises(WrongInput, match=r"noise_table_size: 1000001 numbers .* 0\.00 GB"):
        choose_size(Config(noise_table_size=1_000_001), world, 10)
    assert choose_size(Config(noise_table_size=1_000_000), world, 10)[0] == 1_000_000


def test_default_is_cut_where_memory_is_short(world, monkeypatch):
    monkeypatch.setattr(noise_module, "available_bytes", lambda: 2**40)
    assert choose_size(Config(), world, 100) == (10_000_000, None)
    assert choose_size(Config(), world, 4000) == (100_000_000, None)
    assert choose_size(Config(), world, 20_000) == (250_000_000, None)
    monkeypatch.setattr(noise_module, "available_bytes", lambda: 200_000_000)
    size, notice = choose_size(Config(), world, 20_000)
    assert size == 40_000_000
    assert "250000000" in notice
    assert "40000000" in notice
    assert "\n" not in notice
    with pytest.raises(WrongInput, match="noise_table_size"):
        choose_size(Config(), world, 30_000_000)


def cgroups(root, memberships, files):
    """A tree with what the kernel tells of control groups."""
    for path, text in ({"proc/self/cgroup": memberships} | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return noise_module.cgroup_bytes(root)


def test_limits_of_control_groups_v2(tmp_path):
    """The job's limit binds, not the step's larger one; the file cache in use counts as free."""
    job, step = "sys/fs/cgroup/system.slice/job_7", "sys/fs/cgroup/system.slice/job_7/step_0"
    files = {
        f"{job}/memory.max": "2000\n",
        f"{job}/memory.current": "700\n",
        f"{step}/memory.max": "5000\n",
        f"{step}/memory.current": "500\n",
        f"{job}/memory.stat": "anon 400\ninactive_file 200\nactive_file 100\n",
        f"{step}/memory.stat": "anon 400\ninactive_file 0\n",
    }
    assert cgroups(tmp_path, "0::/system.slice/job_7/step_0\n", files) == 2000 - 700 + 200
    assert cgroups(tmp_path, "0::/system.slice/job_7/step_0\n", {f"{job}/memory.max": "max\n"}) == 5000 - 500
    assert cgroups(tmp_path, "0::/system.slice/job_7/step_0\n", {f"{step}/memory.max": "400\n"}) == 0


def test_limits_of_control_groups_v1(tmp_path):
    """A container names the host's path, but sees its own group at the top."""
    top = "sys/fs/cgroup/memory"
    files = {
        f"{top}/memory.limit_in_bytes": "3000\n",
        f"{top}/memory.usage_in_bytes": "1000\n",
        f"{top}/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    memberships = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/docker/1\n"
    assert cgroups(tmp_path, memberships, files) == 3000 - 1000 + 50


def test_no_control_groups(tmp_path):
    assert noise_module.cgroup_bytes(tmp_path) == 2**62
    assert cgroups(tmp_path, "0::/\n", {"sys/fs/cgroup/memory.stat": "anon 1\n"}) == 2**62


def test_the_jobs_limit_cuts_the_default_only(world, monkeypatch):
    monkeypatch.setattr(noise_module, "available_bytes", lambda: 2**40)
    monkeypatch.setattr(noise_module, "cgroup_bytes", lambda: 200_000_000)
    size, notice = choose_size(Config(), world, 20_000)
    assert size == 40_000_000
    assert "memory limit" in notice
    assert choose_size(Config(noise_table_size=50_000_001), world, 100) == (50_000_001, None)


# -- slices --------------------------------------------------------------------------------------------------


def test_starts_cover_the_whole_table(world):
    """Uniform over every slice that fits, the first and the last included."""
    table = NoiseTable(world, 2, 1000)
    starts = table.starts(2, 0, 0, 20_000, 990)
    assert starts.dtype == np.int64
    assert set(starts) == set(range(11))
    assert stats.chisquare(np.bincount(starts)).pvalue > 1e-3
    assert (table.starts(2, 0, 0, 5, 1000) == 0).all()


def test_starts_differ_between_iterations_and_blocks(noise):
    found = [noise.starts(2, i, first, 50, 100) for i in range(4) for first in (0, 50, 100)]
    assert np.unique(np.concatenate(found)).size > 0.99 * 600
    assert (noise.starts(2, 1, 50, 50, 100) == found[4]).all()
