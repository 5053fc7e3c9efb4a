"""A policy outside of rollouts acts as in them, bit for bit, from a file too; what is exported acts the same."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import launch
import numpy as np
import pytest

import iwes_mpi
from iwes_mpi import export as program
from iwes_mpi.files import checkpoint
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import initial_state
from iwes_mpi.policy import network
from iwes_mpi.policy.exports import ExportError, compare, export, likely_observations
from iwes_mpi.policy.obs_stats import ObsStats
from iwes_mpi.policy.policy import Actions, Policy, PolicyError
from iwes_mpi.rollouts.acting import policy_of
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.rollouts.seeds import SEED_BOUND
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput


def episode(config, whiten=False, noise=0.0):
    """What a Gymnasium runner was shown and did: observations, actions, and the policy of the same theta."""
    runner = open_runner(config)
    rng = np.random.default_rng(5)
    theta = (4 * runner.network.initial_parameters(rng)).astype(np.float32)
    size = runner.network.obs_size
    m2 = np.eye(size) * 3 + 0.5 if whiten else rng.uniform(0.5, 4, size)
    normalizer = ObsStats(2.0, rng.normal(0, 0.3, size), m2).normalizer()
    seen, done = [], []
    step, reset = runner.env.step, runner.env.reset

    def recorded_step(action):
        done.append(action)
        result = step(action)
        seen.append(result[0])
        return result

    def recorded_reset(**given):
        result = reset(**given)
        seen.append(result[0])
        return result

    runner.env.step, runner.env.reset = recorded_step, recorded_reset
    runner.run(EpisodeTask(theta, normalizer, generator(1, Stream.SCORE_EPISODE), noise, False))
    runner.close()
    return np.array(seen[:-1]), np.array(done), policy_of(config, theta.astype(float), normalizer, "a test")


SETTINGS = [
    {"env_id": "Pendulum-v1", "hidden_sizes": (7,), "obs_clip": 0.8},
    {"env_id": "Pendulum-v1", "bias": False, "whiten": True},
    {"env_id": "CartPole-v1", "hidden_sizes": (5, 4), "activation": "relu"},
    {"env_id": "environments:Choice-v0"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_actions_are_those_of_rollouts(settings):
    config = Config(rollouts="gymnasium", max_episode_steps=40, **settings)
    obs, done, policy = episode(config, config.whiten)
    assert len(obs) > 5
    batch = policy(obs)
    assert batch.dtype == (np.int64 if policy.discrete else np.float32)
    assert batch.tobytes() == done.astype(batch.dtype).tobytes()
    assert len(np.unique(batch)) > 1
    for row, action in zip(obs, batch, strict=True):
        assert np.asarray(policy(row)).tobytes() == action.tobytes()
    assert policy.discrete == isinstance(policy(obs[0]), int)


def test_noise_is_that_of_rollouts():
    config = Config(env_id="Pendulum-v1", rollouts="gymnasium", max_episode_steps=20, action_noise=0.3)
    obs, done, policy = episode(config, noise=0.3)
    rng = generator(1, Stream.SCORE_EPISODE)
    rng.integers(SEED_BOUND)  # the environment's
    assert policy(obs, noise=policy.action_noise, rng=rng).tobytes() == done.tobytes()
    assert policy(obs).tobytes() != done.tobytes()
    with pytest.raises(ValueError, match="noise needs rng"):
        policy(obs, noise=0.3)


@pytest.mark.slow
def test_a_native_episode_is_the_one_that_the_policy_makes_in_gymnasium():
    """From the same seed the same observations, bit for bit, to the end."""
    config = Config(env_id="HalfCheetah-v5", hidden_sizes=(9,), activation="relu", bias=False, max_episode_steps=60)
    native = open_runner(config)
    theta = (3 * native.network.initial_parameters(np.random.default_rng(2))).astype(np.float32)
    normalizer = ObsStats(2.0, np.full(17, 0.1), np.full(17, 3.0)).normalizer()
    trace = np.zeros((60, 18))
    native.run(EpisodeTask(theta, normalizer, generator(1, Stream.SCORE_EPISODE), 0.0, False), trace)
    native.close()
    policy = policy_of(config, theta.astype(float), normalizer, "")
    env = gymnasium.make("HalfCheetah-v5")
    seen = [env.reset(seed=int(generator(1, Stream.SCORE_EPISODE).integers(SEED_BOUND)))[0]]
    for _ in range(59):
        seen.append(env.step(policy(seen[-1]))[0])
    env.close()
    assert np.array(seen).tobytes() == trace[:, 1:].tobytes()


# -- policies without an environment -------------------------------------------------------------------------


def made(hidden=(6,), bias=True, activation="tanh", discrete=False, whiten=False, clip=5.0):
    rng = np.random.default_rng(3)
    layout = network.layout(5, hidden, 3, bias, activation)
    stats = ObsStats(2.0, rng.normal(size=5), np.eye(5) + 0.3 if whiten else rng.uniform(0.5, 4, 5))
    bounds = np.array([[-1, -2, -np.inf], [1, 0.5, np.inf]], dtype=np.float32)
    actions = Actions(*np.zeros((2, 0), np.float32), -1) if discrete else Actions(*bounds, None)
    theta = rng.standard_normal(layout.n_parameters).astype(np.float32)
    return Policy(layout, theta, stats.normalizer(), clip, actions, 0.1, "a test")


POLICIES = {
    "continuous": {}, "discrete": {"discrete": True}, "linear": {"hidden": (), "bias": False},
    "relu": {"hidden": (4, 7), "activation": "relu"}, "whitened": {"whiten": True, "clip": np.inf},
    "relu without bias, discrete": {"activation": "relu", "bias": False, "discrete": True},
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_policy_acts_the_same(name, tmp_path):
    policy = made(**POLICIES[name])
    policy.save(tmp_path / "policy.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.npz"]
    loaded = iwes_mpi.load_policy(tmp_path / "policy.npz")
    obs = likely_observations(policy)
    assert np.asarray(loaded(obs)).tobytes() == np.asarray(policy(obs)).tobytes()
    assert (loaded.about, loaded.action_noise, repr(loaded)) == ("a test", 0.1, repr(policy))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4), r"must have the shape \(5,\) or \(n, 5\), got \(4,\)"),
        (np.zeros((2, 2, 5)), "must have the shape"),
        (0.0, "must have the shape"),
        ([[0] * 5, [np.nan, 0, 0, 0, 0]], "observation 1 is not finite"),
        ([np.inf, 0, 0, 0, 0], "observation 0 is not finite"),
    ],
)
def test_what_is_no_observation_is_refused(obs, message):
    with pytest.raises(ValueError, match=message):
        made()(obs)


def test_observations_may_be_of_any_kind_and_order():
    policy = made()
    obs = np.asfortranarray(np.random.default_rng(0).integers(-5, 5, (9, 5)))
    assert (policy(obs) == policy(obs.astype(np.float64).copy())).all()
    assert (policy(obs[:, ::-1].astype(np.float32)) == policy(obs[:, ::-1].copy())).all()
    assert policy(np.zeros((0, 5))).shape == (0, 3)


def damaged(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name: value for name, value in changes.items() if value is not None}
    np.savez(path, **{name: value for name, value in arrays.items() if changes.get(name, 0) is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": None}, "is not whole: theta is missing"),
        ({"format": None}, "holds no policy"),
        ({"format": np.array("other/1")}, "has format other/1, not iwes-mpi-policy/1"),
        ({"theta": np.zeros(3, np.float32)}, r"theta has the shape \(3,\) instead of"),
        ({"theta": np.zeros(3, np.int64)}, "theta is of another kind"),
        ({"normalizer": np.zeros((4, 5))}, "normalizer has the shape"),
        ({"sizes": np.array([5, -6, 3])}, "are those of no network"),
        ({"normalizer": np.full((2, 5), np.nan)}, "must be finite"),
        ({"low": np.zeros(2, np.float32)}, "low has the shape"),
        ({"about": np.array([{}], dtype=object)}, "is not a policy of iwes_mpi, or is damaged"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_a_line(changes, message, tmp_path):
    path = tmp_path / "policy.npz"
    made().save(path)
    damaged(path, **changes)
    with pytest.raises(PolicyError, match=message) as caught:
        iwes_mpi.load_policy(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_or_absent_is_refused_in_a_line(tmp_path):
    path = tmp_path / "policy.npz"
    made().save(path)
    data = path.read_bytes()
    for content in (b"", b"no", data[:200], data[:-30], data[:300] + b"\0" * 40 + data[340:]):
        path.write_bytes(content)
        with pytest.raises(PolicyError, match=r"^[^\n]+$"):
            iwes_mpi.load_policy(path)
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        iwes_mpi.load_policy(tmp_path / "none.npz")


def test_a_policy_file_from_others_is_read_safely(tmp_path):
    """No pipe is waited for, no more memory taken than the file's size, nothing printed that a terminal obeys."""
    os.mkfifo(tmp_path / "pipe.npz")
    made().save(tmp_path / "named.npz")
    damaged(tmp_path / "named.npz", about=np.array("\x1b[2J"), format=np.array("\x1b]0;owned\x07"))
    np.savez_compressed(tmp_path / "bomb.npz", format=np.array("iwes-mpi-policy/1"), theta=np.zeros(10**6, np.float32))
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**60,)}
        with file.open("theta.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
    made().save(tmp_path / "wide.npz")
    damaged(tmp_path / "wide.npz", sizes=np.array([2**32, 2**32]), theta=np.zeros(0, np.float32))
    for name in ("pipe", "named", "bomb", "huge", "wide"):
        with pytest.raises(PolicyError) as caught:
            iwes_mpi.load_policy(tmp_path / f"{name}.npz")
        assert str(caught.value).isprintable()
    made().save(tmp_path / "named.npz")
    damaged(tmp_path / "named.npz", about=np.array("\x1b[2J"))
    assert repr(iwes_mpi.load_policy(tmp_path / "named.npz")).isprintable()


# -- runs and exports ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of CartPole with two kept checkpoints, made without running it."""
    folder = tmp_path_factory.mktemp("act") / "run"
    folder.mkdir()
    config = Config(env_id="CartPole-v1", hidden_sizes=(4,), keep_checkpoints=3)
    state = initial_state(3, network.layout(4, (4,), 2), "adam")
    tables = {"iterations": {}, "updates": {}}
    for state.iteration in (0, 10):
        checkpoint.save(folder, checkpoint.Checkpoint(state, config, {}, tables))
        state.theta += 1.0
    return folder


def test_the_policy_of_a_run_and_of_a_kept_checkpoint(run_dir):
    run = iwes_mpi.Run(run_dir)
    assert run.policy().about == "CartPole-v1 after 10 iterations"
    assert (run.policy().theta == run.theta.astype(np.float32)).all()
    first = run.policy(checkpoint=0)
    np.testing.assert_allclose(run.policy().theta - first.theta, 1.0, rtol=1e-6)
    same = run.policy(checkpoint=run_dir / "checkpoints/iteration-000000.h5")
    assert (same.theta == first.theta).all()
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of iteration 7, but those of 0, 10"):
        run.policy(checkpoint=7)


def test_a_module_that_a_file_names_is_imported_only_if_told_to(tmp_path, capsys, monkeypatch):
    """By export and by `Run.policy`, which make the environment; then it is."""
    config = Config(env_id="newcomer:CartPole-v1", hidden_sizes=(4,))
    state = initial_state(3, network.layout(4, (4,), 2), "adam")
    checkpoint.save(tmp_path, checkpoint.Checkpoint(state, config, {}, {"iterations": {}, "updates": {}}))
    (tmp_path / "newcomer.py").write_text("print('here')")
    monkeypatch.syspath_prepend(tmp_path)
    argv = [str(tmp_path), "-o", str(tmp_path / "policy.npz")]
    for refused in (lambda: program.main(argv), lambda: iwes_mpi.Run(tmp_path).policy()):
        with pytest.raises(WrongInput, match=r"^trust: is needed: .* module newcomer would be imported"):
            refused()
    assert capsys.readouterr().out == ""
    assert program.main([*argv, "--trust"]) == 0
    assert capsys.readouterr().out.startswith("here\n")
    assert iwes_mpi.Run(tmp_path).policy(trust=True).discrete


def test_export_writes_a_file_that_acts_the_same(run_dir, tmp_path, capsys):
    assert program.main([str(run_dir), "-o", str(tmp_path / "policy.npz"), "--checkpoint", "0"]) == 0
    assert "CartPole-v1 after 0 iterations; checked: the same actions" in capsys.readouterr().out
    policy = iwes_mpi.load_policy(tmp_path / "policy.npz")
    assert (policy.theta == iwes_mpi.Run(run_dir).policy(checkpoint=0).theta).all()
    assert [path.name for path in tmp_path.iterdir()] == ["policy.npz"]


@pytest.mark.parametrize("flags", [[], ["--to", "npz"]])
def test_export_has_a_file_by_default(flags, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main([str(run_dir), *flags]) == 0
    policy = iwes_mpi.load_policy("policy.npz")
    assert (policy.theta == iwes_mpi.Run(run_dir).policy().theta).all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("RUN -o policy.xyz", "to: is needed where FILE ends in none of .npz, .onnx, .pt"),
        ("RUN -o policy.npz --to tflite", "to: invalid choice"),
        ("RUN -o policy.onnx --to npz", "to: is npz, but policy.onnx ends as onnx does"),
        ("RUN -o policy.npz --checkpoint 7", "checkpoint: .* has kept no checkpoint of iteration 7"),
        ("RUN/checkpoint.h5 -o policy.npz --checkpoint 7", "checkpoint: needs a run directory"),
        ("/no/run -o policy.npz", "run: /no/run does not exist"),
        ("RUN -o /no/such/policy.npz", "output: /no/such/policy.npz: No such file"),
    ],
)
def test_wrong_command_lines_of_export(argv, message, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongInput, match=f"^{message}"):
        program.main([part.replace("RUN", str(run_dir)) for part in argv.split()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxruntime"), ("torchscript", "torch")])
def test_exported_networks_act_the_same(form, package, name, tmp_path):
    """Only where the package is there: CI has neither, since they are large."""
    pytest.importorskip(package)
    assert export(made(**POLICIES[name]), form, tmp_path / "file") < 1e-4


@pytest.mark.parametrize("name", ["continuous", "discrete"])
def test_what_acts_otherwise_is_noticed(name):
    policy, other = made(**POLICIES[name]), made(**POLICIES[name])
    assert compare(policy, other) == 0
    other.theta[:3] += 0.01
    with pytest.raises(ExportError, match=r"actions differ by|actions are others"):
        compare(policy, other)


@pytest.mark.slow
def test_the_example_of_the_page_and_of_the_readme(run_dir, tmp_path, monkeypatch):
    page = (launch.ROOT / "docs" / "policies.md").read_text("utf-8")
    (text,) = re.findall(r"```python\n(# act\.py\n.*?)```", page, flags=re.DOTALL)
    assert len(text.splitlines()) <= 20
    written = run_dir.parent / "written"
    outcome = launch.train(
        1, "--env-id", "CartPole-v1", "--iterations", "1", "--eval-every", "1", "--noise-table-size", "20000",
        "--run-dir", str(written)
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (tmp_path / "act.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "act.py", str(written)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"(episode \d: return \d+\.0\n){3}", done.stdout)
    policy = iwes_mpi.load_policy(tmp_path / "policy.npz")
    assert (policy.theta == iwes_mpi.open_run(written).theta.astype(np.float32)).all()
    assert Path(tmp_path / "policy.npz").stat().st_size < 10_000
    (text,) = re.findall(r"```python\n(.*?)```", (launch.ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cheetah").symlink_to(written)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(text, names)
    assert names["action"] in (0, 1)
