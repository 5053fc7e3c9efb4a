"""Native rollouts against Gymnasium: the same observations, rewards, lengths and statistics, to the bit."""

import gc
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import launch
import mujoco
import numpy as np
import pytest

from iwes_mpi import open_run
from iwes_mpi.compiled.jit import kernel
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import network
from iwes_mpi.rollouts import generators, simulator
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.environments import make_env
from iwes_mpi.rollouts.episode import Episode, EpisodeTask
from iwes_mpi.rollouts.gym_runner import GymRunner
from iwes_mpi.rollouts.tasks import TASKS, dot_fuses, norm, power, sum_clipped_squares, sum_squares
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

EPISODES = 20
UNCUT = os.environ.get("IWES_FULL_EPISODES") == "1"  # every case's episodes up to the task's own time limit: minutes


class Case(NamedTuple):
    """A task, settings other than its own, and how many steps its episodes may have in the test."""

    env_id: str
    limit: int
    env_kwargs: dict[str, Any]
    ends: bool  # whether some episodes must end before the limit, for the test to mean anything


CASES = [
    Case(
        "HalfCheetah-v5", 60,
        {"forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3, "reset_noise_scale": 0.2, "frame_skip": 3,
         "exclude_current_positions_from_observation": False}, False,
    ),
    Case(
        "Swimmer-v5", 60,
        {"forward_reward_weight": 2, "ctrl_cost_weight": 0.01, "reset_noise_scale": 0.3, "frame_skip": 2,
         "exclude_current_positions_from_observation": False}, False,
    ),
    Case(
        "Hopper-v5", 100,
        {"forward_reward_weight": 0.9, "ctrl_cost_weight": 0.02, "healthy_reward": 0.6, "reset_noise_scale": 0.03,
         "healthy_state_range": (-3.0, 4.0), "healthy_z_range": (0.8, 1.6), "healthy_angle_range": (-0.3, 0.25),
         "frame_skip": 5, "exclude_current_positions_from_observation": False}, True,
    ),
    Case("Hopper-v5", 100, {"terminate_when_unhealthy": False, "reset_noise_scale": 0.1}, False),
    Case(
        "Walker2d-v5", 100,
        {"forward_reward_weight": 0.9, "ctrl_cost_weight": 0.02, "healthy_reward": 0.6, "reset_noise_scale": 0.03,
         "healthy_z_range": (0.9, 1.9), "healthy_angle_range": (-0.7, 0.6), "frame_skip": 3,
         "exclude_current_positions_from_observation": False}, True,
    ),
    Case(
        "Ant-v5", 80,
        {"forward_reward_weight": 0.9, "ctrl_cost_weight": 0.2, "contact_cost_weight": 0.01, "healthy_reward": 0.4,
         "main_body": "front_left_leg", "healthy_z_range": (0.35, 0.9), "contact_force_range": (-0.5, 0.7),
         "reset_noise_scale": 0.15, "frame_skip": 4, "exclude_current_positions_from_observation": False}, True,
    ),
    Case(
        "Ant-v5", 40,
        {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0, "terminate_when_unhealthy": False}, False,
    ),
    Case(
        "Ant-v4", 80,
        {"use_contact_forces": True, "ctrl_cost_weight": 0.2, "contact_cost_weight": 0.01, "healthy_reward": 0.4,
         "healthy_z_range": (0.35, 0.9), "contact_force_range": (-0.5, 0.7), "reset_noise_scale": 0.15,
         "exclude_current_positions_from_observation": False}, True,
    ),
    Case("Ant-v4", 40, {"terminate_when_unhealthy": False, "healthy_z_range": (0.4, 0.7)}, False),
    # Forces at full size: here a sum of their squares in another order than NumPy's changes the return
    Case("Ant-v5", 80, {"contact_cost_weight": 0.3}, False),
    Case("Ant-v4", 80, {"use_contact_forces": True, "contact_force_range": (-1000.0, 1000.0)}, False),
    Case(
        "Humanoid-v5", 100,
        {"forward_reward_weight": 0.9, "ctrl_cost_weight": 0.2, "contact_cost_weight": 1e-5, "healthy_reward": 2,
         "contact_cost_range": (0.5, 3.0), "healthy_z_range": (1.1, 1.9), "reset_noise_scale": 0.05,
         "include_cvel_in_observation": False, "include_qfrc_actuator_in_observation": False,
         "exclude_current_positions_from_observation": False}, True,
    ),
    Case(
        "HumanoidStandup-v5", 25,
        {"ctrl_cost_weight": 0.2, "impact_cost_weight": 1e-5, "impact_cost_range": (0.5, 3.0),
         "reset_noise_scale": 0.05, "include_cinert_in_observation": False, "include_cfrc_ext_in_observation": False,
         "frame_skip": 4}, False,
    ),
    Case("InvertedPendulum-v5", 100, {"reset_noise_scale": 0.1, "frame_skip": 1}, True),
    Case("InvertedDoublePendulum-v5", 100, {"reset_noise_scale": 1.1}, True),  # starts beyond the end of the rail
    Case("InvertedDoublePendulum-v5", 100, {"reset_noise_scale": 0.05, "healthy_reward": 3, "frame_skip": 2}, True),
    Case("Reacher-v5", 50, {"reward_dist_weight": 0.7, "reward_control_weight": 0.3, "frame_skip": 3}, False),
    Case(
        "Pusher-v5", 60,
        {"reward_near_weight": 0.3, "reward_dist_weight": 2, "reward_control_weight": 0.4, "frame_skip": 4}, False,
    ),
]  # fmt: skip

CAN_LAST = {"Hopper-v5", "Walker2d-v5", "Ant-v5", "Ant-v4", "Humanoid-v5"}  # beyond a fall, with the setting
FALL = {"InvertedPendulum-v5", "InvertedDoublePendulum-v5"}  # always end with it


def time_limit(env_id: str) -> int:
    """Steps of the task's longest episodes."""
    limit = gymnasium.spec(env_id).max_episode_steps
    assert limit is not None
    return limit


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the observations and rewards of an episode, as `run_episode` traces them."""

    def reset(self, **arguments: Any) -> Any:
        obs, info = super().reset(**arguments)
        self.rows = [np.array([0.0, *obs])]
        return obs, info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.rows.append(np.array([reward, *obs]))
        return obs, reward, terminated, truncated, info


class Pair:
    """Both runners of one environment."""

    def __init__(self, **settings: Any):
        config = Config(hidden_sizes=(20, 7), obs_clip=3.0, **settings)
        self.native: Any = open_runner(Config(**config.as_dict() | {"rollouts": "native"}))
        self.through: Any = open_runner(Config(**config.as_dict() | {"rollouts": "gymnasium"}))
        self.through.env = Recorder(self.through.env)
        self.network = self.native.network
        assert (self.network.sizes == self.through.network.sizes).all()

    def run(self, sample: int, scale: float = 3.0) -> tuple[Episode, Episode, np.ndarray, np.ndarray]:
        """Run an episode of a random policy in both: what came of it, and their traces."""
        rng = np.random.default_rng(sample)
        size = int(self.network.sizes[0])
        theta = (scale * self.network.initial_parameters(rng)).astype(np.float32)
        theta += rng.normal(scale=0.1, size=theta.size).astype(np.float32)
        normalizer = np.stack([rng.normal(size=size), rng.uniform(0.5, 2.0, size=size)])

        def task() -> EpisodeTask:
            noise = generator(7, Stream.POPULATION_EPISODE, 0, sample)
            return EpisodeTask(theta, normalizer, noise, (0.0, 0.01, 0.3)[sample % 3], sample % 2 == 0)

        trace = np.full((2000, 1 + size), np.nan)
        native, through = self.native.run(task(), trace), self.through.run(task())
        return native, through, trace[: native.length + 1], np.array(self.through.env.rows)

    def close(self) -> None:
        """Close both."""
        self.native.close()
        self.through.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.env_id}-{len(case.env_kwargs)}")
def test_episodes_are_those_of_gymnasium(case: Case) -> None:
    limit = time_limit(case.env_id) if UNCUT else case.limit
    pair = Pair(env_id=case.env_id, env_kwargs=case.env_kwargs, max_episode_steps=limit)
    lengths = {compare(pair, sample) for sample in range(EPISODES)}
    pair.close()
    assert UNCUT or case.ends == (min(lengths) < limit)


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_an_episode_of_full_length_is_that_of_gymnasium(env_id: str) -> None:
    lasting = {"terminate_when_unhealthy": False} if env_id in CAN_LAST else {}
    pair = Pair(env_id=env_id, env_kwargs=lasting)
    length = compare(pair, 0)
    pair.close()
    assert length == time_limit(env_id) or env_id in FALL


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("case", {case.env_id: case for case in reversed(CASES)}.values(), ids=lambda case: case.env_id)
def test_with_other_settings_an_episode_of_full_length_is_that_of_gymnasium(case: Case) -> None:
    lasting = {"terminate_when_unhealthy": False} if case.env_id in CAN_LAST else {}
    pair = Pair(env_id=case.env_id, env_kwargs=case.env_kwargs | lasting)
    length = compare(pair, 1)
    pair.close()
    assert length == time_limit(case.env_id) or case.env_id in FALL


def clock_is_set() -> bool:
    """Whether MuJoCo times itself: whether a step adds to the timers of its data."""
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    return bool(data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration > 0)


def test_mujoco_times_itself_again_once_all_runners_are_closed() -> None:
    assert clock_is_set()
    runners = [open_runner(Config(env_id="Swimmer-v5", rollouts=rollouts)) for rollouts in ("native", "gymnasium")]
    assert not clock_is_set()
    runners[0].close()
    runners[0].close()
    assert not clock_is_set(), "the other one is still open"
    runners[1].close()
    assert clock_is_set()
    forgotten = open_runner(Config(env_id="Swimmer-v5"))
    assert not clock_is_set()
    del forgotten
    gc.collect()
    assert clock_is_set()
    plain = open_runner(Config(env_id="CartPole-v1"))
    config = Config(env_id="Swimmer-v5")
    filming = GymRunner(config, make_env(config))  # as a film does
    assert clock_is_set()
    plain.close()
    filming.close()
    assert clock_is_set()


def test_a_clock_that_somebody_else_sets_meanwhile_stays() -> None:
    no_clock = simulator.NoClock()
    called: list[float] = []
    mujoco.set_mjcb_time(lambda: called.append(0.0) or float(len(called)))
    no_clock.close()
    clock_is_set()
    mujoco.set_mjcb_time(None)
    assert called


def test_islands_are_looked_for_in_models_of_several_trees_only() -> None:
    skipped = {}
    for env_id in ("Ant-v5", "Pusher-v5", "Reacher-v5"):
        runner: Any = open_runner(Config(env_id=env_id, rollouts="native"))
        model = runner._env.unwrapped.model
        skipped[env_id] = bool(model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_ISLAND)
        assert skipped[env_id] == (model.ntree == 1)
        runner.close()
        through: Any = open_runner(Config(env_id=env_id, rollouts="gymnasium"))
        assert not through.env.unwrapped.model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_ISLAND
        through.close()
    assert skipped == {"Ant-v5": True, "Pusher-v5": False, "Reacher-v5": False}


def compare(pair: Pair, sample: int) -> int:
    """Hold an episode against Gymnasium's; returns its length."""
    native, through, found, expected = pair.run(sample)
    assert native.length == through.length
    assert found[:, 1:].tobytes() == expected[:, 1:].tobytes(), "observations differ"
    np.testing.assert_array_equal(found[:, 0], expected[:, 0], "rewards differ")
    assert np.isfinite(through.total_reward)
    assert native.total_reward == through.total_reward
    assert (native.obs_stats is None) == (through.obs_stats is None) == (sample % 2 == 1)
    if native.obs_stats is not None:
        assert native.obs_stats.tobytes() == through.obs_stats.tobytes()
        assert native.obs_stats[0] == native.length
    return native.length


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squares_are_summed_in_the_order_of_numpy(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    for n in [*range(1, 300), 1000, 1023, 2049]:  # one by one, by eights, and in halves
        x = rng.normal(scale=3, size=n).astype(dtype)
        assert sum_squares(x) == np.sum(np.square(x)), n
    for bodies in (1, 2, 14, 21, 22, 43):
        forces = rng.normal(scale=3, size=(bodies, 6))
        expected = np.sum(np.square(np.clip(forces, -2.0, 5.0)))
        scratch = np.empty(forces.size)
        assert sum_clipped_squares(forces.reshape(-1), (-2.0, 5.0), scratch) == expected, bodies


def test_norms_and_powers_are_those_of_numpy() -> None:
    fused, points = dot_fuses(), np.random.default_rng(4).normal(size=(20_000, 3))
    for x, y, z in points:
        assert norm(x, y, z, fused) == np.linalg.norm((x, y, z))
        assert norm(x, y, 0.0, fused) == np.linalg.norm((x, y))
        assert power(x, 2.0) == x**2


def test_every_task_has_a_case() -> None:
    assert {case.env_id for case in CASES} == set(TASKS)


@pytest.mark.slow
def test_steps_allocate_nothing() -> None:
    cases = [{"env_id": case.env_id, "env_kwargs": case.env_kwargs} for case in CASES]
    done = launch.plain("count_allocations.py", timeout=240, given=json.dumps(cases), NUMBA_NRT_STATS="1")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found) == len(CASES)
    for case, (short, longer) in zip(CASES, found, strict=True):
        assert short[0] < longer[0] or case.env_id in FALL, (case, short, longer)
        assert short[1] > 0, "the arguments' own handles are not counted: nothing is"
        assert short[1:] == longer[1:], (case, short, longer)


def test_other_threads_run_during_an_episode() -> None:
    """A second Python thread notes the time again and again; held up by the GIL, it would miss the whole episode."""
    runner: Any = open_runner(Config(env_id="HalfCheetah-v5", rollouts="native", max_episode_steps=20_000))
    size = int(runner.network.sizes[0])
    task = EpisodeTask(
        np.zeros(runner.network.n_parameters, dtype=np.float32), np.ones((2, size)),
        generator(7, Stream.POPULATION_EPISODE), 0.3, False,
    )  # fmt: skip
    runner.rehearse(task)  # compiles, which holds the GIL
    times, over = [time.monotonic()], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            times.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    assert runner.run(task).length == 20_000
    duration = time.monotonic() - start
    over.set()
    watcher.join()
    runner.close()
    times.append(time.monotonic())
    assert np.diff(times).max() < duration / 2, duration


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_default_settings_are_understood(env_id: str) -> None:
    pair = Pair(env_id=env_id)
    assert pair.native.limit == pair.through.limit == time_limit(env_id)
    pair.close()


def test_an_episode_depends_on_its_task_alone() -> None:
    pair = Pair(env_id="Pusher-v5", max_episode_steps=30)  # Gymnasium's Pusher writes over its own start state
    first = pair.run(1)[0]
    for sample in (2, 3):
        pair.run(sample)
    assert pair.run(1)[0].total_reward == first.total_reward
    pair.close()


def _model(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """A changed copy of one of Gymnasium's models; returns its path."""
    import gymnasium.envs.mujoco

    text = (Path(gymnasium.envs.mujoco.__file__).parent / "assets" / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return str(path)


def test_another_model(tmp_path: Path) -> None:
    # Longer steps, stronger motors, and a sensor that makes MuJoCo compute contact forces by itself
    path = _model(
        tmp_path, "hopper.xml", ('timestep="0.002"', 'timestep="0.003"'), ('gear="200.0"', 'gear="350.0"'),
        ("</mujoco>", '<sensor><force site="tip"/></sensor></mujoco>'),
        ('<body name="foot"', '<site name="tip" pos="0 0 0.1"/><body name="foot"'),
    )  # fmt: skip
    pair = Pair(env_id="Hopper-v5", env_kwargs={"xml_file": path})
    for sample in range(5):
        native, through, found, expected = pair.run(sample)
        assert found.tobytes() == expected.tobytes()
        assert native.length == through.length > 5
    pair.close()


@pytest.mark.parametrize("backend", ["native", "gymnasium"])
def test_an_unstable_episode_is_invalid_and_quiet(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _model(tmp_path, "half_cheetah.xml", ('timestep="0.01"', 'timestep="0.1"'), ('gear="120"', 'gear="1e9"'))
    pair = Pair(env_id="HalfCheetah-v5", env_kwargs={"xml_file": path})
    lengths = set()
    for sample in range(5):
        native, through, _, _ = pair.run(sample)
        for episode in (native, through):
            assert np.isnan(episode.total_reward)
            assert episode.obs_stats is None
        assert native.length == through.length
        lengths.add(native.length)
    pair.close()
    assert 0 < max(lengths) < 1000
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


@pytest.mark.filterwarnings("ignore:.*out of date", "ignore:.*precision lowered")
def test_what_the_rules_do_not_know_runs_through_gymnasium() -> None:
    unknown: list[dict[str, Any]] = [
        {"env_id": "CartPole-v1"},
        {"env_id": "HalfCheetah-v4"},
        {"env_id": "HalfCheetah-v5", "env_kwargs": {"exclude_current_positions_from_observation": 1}},
        {"env_id": "Strange/HalfCheetah-v0"},
        {"env_id": "Strange/Wrapped-v0"},
    ]
    entry = "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv"
    wrapper = gymnasium.wrappers.RescaleAction.wrapper_spec(min_action=-0.5, max_action=0.5)
    with pytest.MonkeyPatch.context() as patch:
        gymnasium.register("Strange/HalfCheetah-v0", entry_point=entry, max_episode_steps=50)
        gymnasium.register(
            "Strange/Wrapped-v0", entry_point=entry, max_episode_steps=50, additional_wrappers=(wrapper,)
        )
        patch.setitem(TASKS, "Strange/Wrapped-v0", TASKS["HalfCheetah-v5"])
        for settings in unknown:
            runner = open_runner(Config(**settings))
            assert runner.description == f"{settings['env_id']} through Gymnasium"
            runner.close()
            with pytest.raises(WrongInput, match=r"^rollouts: .* cannot run natively: .") as refusal:
                open_runner(Config(**settings, rollouts="native"))
            assert "\n" not in str(refusal.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "Hopper-v5", TASKS["HalfCheetah-v5"])  # an id that stands for another class
        with pytest.raises(WrongInput, match="HopperEnv"):
            open_runner(Config(env_id="Hopper-v5", rollouts="native"))


def test_descriptions() -> None:
    for rollouts, how in (("auto", "natively in MuJoCo " + mujoco.__version__), ("gymnasium", "through Gymnasium")):
        runner = open_runner(Config(env_id="Swimmer-v5", rollouts=rollouts))
        assert runner.description == f"Swimmer-v5 {how}"
        runner.close()


def test_tasks_of_the_wrong_kind_are_refused() -> None:
    runner = open_runner(Config(env_id="Swimmer-v5", rollouts="native"))
    size, d = int(runner.network.sizes[0]), runner.network.n_parameters
    noise = generator(0, Stream.POPULATION_EPISODE)
    for theta in (np.zeros(d), np.zeros(2 * d, dtype=np.float32)[::2]):
        with pytest.raises(TypeError, match="theta"):
            runner.run(EpisodeTask(theta, np.ones((2, size)), noise, 0.0, False))
    runner.close()


@kernel
def _draw(bitgen: int, out: Any) -> None:
    rng = generators.generator_at(bitgen)
    for j in range(0, out.shape[0], 2):
        out[j] = rng.uniform(-0.3, 0.2)
        out[j + 1] = rng.standard_normal()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 6_364_136_223_846_793_005])
def test_environments_are_seeded_as_gymnasium_does(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(99))
    rng.integers(2**32, dtype=np.uint32)  # leaves half a draw in the generator's buffer
    generators.seed_pcg64(generators.address(rng), np.uint64(seed), np.zeros(8, dtype=np.uint64))
    expected, _ = gymnasium.utils.seeding.np_random(seed)
    assert rng.bit_generator.state == expected.bit_generator.state
    drawn = np.zeros(2000)
    _draw(generators.address(rng), drawn)
    np.testing.assert_array_equal(
        drawn, [f() for _ in range(1000) for f in (lambda: expected.uniform(-0.3, 0.2), expected.standard_normal)]
    )
    assert rng.bit_generator.state == expected.bit_generator.state


def test_the_seed_is_the_generators_first_integer() -> None:
    for sample in range(100):
        ours, theirs = (generator(3, Stream.POPULATION_EPISODE, 1, sample) for _ in range(2))
        assert generators.draw_seed(ours) == int(theirs.integers(2**63))
        assert ours.standard_normal() == theirs.standard_normal()


@pytest.mark.parametrize("hidden", [(), (1,), (15, 16), (17, 63), (64, 65), (100, 127), (128, 200), (256, 333, 5)])
@pytest.mark.parametrize(("obs_size", "action_size"), [(1, 1), (9, 8), (30, 17)])
def test_every_width_of_layer(hidden: tuple[int, ...], obs_size: int, action_size: int) -> None:
    layout = network.layout(obs_size, hidden, action_size)
    rng = np.random.default_rng(1)
    theta = rng.normal(scale=0.3, size=layout.n_parameters + 1).astype(np.float32)
    obs = rng.normal(size=obs_size).astype(np.float32)
    values, offset = obs.astype(np.float64), 0
    for layer, (inputs, units) in enumerate(zip(layout.sizes[:-1], layout.sizes[1:], strict=True)):
        weights = theta[offset : offset + inputs * units].reshape(inputs, units).astype(np.float64)
        bias = theta[offset + inputs * units : offset + (inputs + 1) * units]
        values, offset = values @ weights + bias, offset + (inputs + 1) * units
        values = np.tanh(values) if layer < len(hidden) else values
    outputs = []
    for shift in (0, 1):  # aligned in memory, and not
        aligned = network.empty_parameters(layout.n_parameters + 1)
        aligned[shift : shift + layout.n_parameters] = theta[:-1]
        scratch, out = layout.scratch(), np.full(action_size + 2, 7.0, dtype=np.float32)
        scratch[0, :obs_size] = obs
        network.forward(layout, aligned[shift : shift + layout.n_parameters], scratch, out[1:-1])
        np.testing.assert_allclose(out[1:-1], values, rtol=2e-5, atol=2e-5)
        assert out[0] == out[-1] == 7.0
        outputs.append(out.tobytes())
    assert outputs[0] == outputs[1]


def test_parameters_are_aligned() -> None:
    for n in (1, 5, 1000):
        parameters = network.empty_parameters(n)
        assert parameters.shape == (n,)
        assert parameters.dtype == np.float32
        assert parameters.ctypes.data % 64 == 0


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("env_id", "settings"),
    [("Hopper-v5", ["--iw-updates", "1"]), ("InvertedDoublePendulum-v5", ["--env-kwargs", '{"healthy_reward": 3}'])],
)
def test_training_runs_have_the_same_theta(env_id: str, settings: list[str], tmp_path: Path) -> None:
    digests = {}
    for rollouts in ("native", "gymnasium"):
        outcome = launch.train(
            2, "--env-id", env_id, *settings, "--rollouts", rollouts, "--n-pairs", "20", "--min-env-steps", "0",
            "--n-eval", "2", "--iterations", "4", "--obs-stat-probability", "0.2", "--noise-table-size", "50000",
            "--hidden-sizes", "16", "--max-episode-steps", "200", "--run-dir", str(tmp_path / rollouts),
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert ("natively" in outcome.out) == (rollouts == "native")
        iterations = open_run(tmp_path / rollouts).iterations
        digests[rollouts] = list(iterations["theta_digest"]), list(iterations["env_steps"])
        shutil.rmtree(tmp_path / rollouts)
    assert digests["native"] == digests["gymnasium"]
    assert len(set(digests["native"][0])) == 4
