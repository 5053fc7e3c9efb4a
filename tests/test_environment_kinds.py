"""Environments of many kinds train, and give the same episode whatever ran before; others are refused with advice.

A kind whose package is absent is skipped: docs/environments.md lists with which versions each was tried.
"""

import importlib.util
import json
import re
import sys
import types
from typing import Any, NamedTuple

import gymnasium
import launch
import numpy as np
import pytest
from environments import Drift
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import iwes_mpi
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.mpi.world import World
from iwes_mpi.policy.obs_stats import ObsStats
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.environments import make_env
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.train import train

pytestmark = [
    # Box2D is made by SWIG, which crashes where this warning is an error
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
    # dm_control looks for a screen
    pytest.mark.filterwarnings(r"ignore:\(65550\)"),
]
PAGE = (launch.ROOT / "docs" / "environments.md").read_text("utf-8")


class Kind(NamedTuple):
    """An environment to be tried."""

    env_id: str
    needs: tuple[str, ...] = ()  # packages
    settings: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default is shared, and nobody changes it


RAM = {"env_kwargs": {"obs_type": "ram", "frameskip": 10}, "max_episode_steps": 50}
CARTPOLE = {"env_kwargs": {"task": "cartpole-swingup"}, "max_episode_steps": 100}
KINDS = [
    Kind("CartPole-v1"),
    Kind("Acrobot-v1", settings={"max_episode_steps": 100}),
    Kind("Pendulum-v1"),
    Kind("MountainCarContinuous-v0", settings={"max_episode_steps": 100}),
    Kind("LunarLander-v3", ("Box2D", "pygame"), {"max_episode_steps": 100}),
    Kind("BipedalWalker-v3", ("Box2D", "pygame"), {"max_episode_steps": 100}),
    Kind("ale_py:ALE/Pong-v5", ("ale_py",), RAM),
    Kind("control:Control-v0", ("shimmy", "dm_control"), CARTPOLE),
]


@pytest.fixture(scope="module", autouse=True)
def modules_of_the_page(tmp_path_factory):
    """The page's examples as modules that can be imported."""
    folder = tmp_path_factory.mktemp("modules")
    known = dict(gymnasium.registry)
    for text, name in re.findall(r"```python\n(# (\w+)\.py\n.*?)```", PAGE, flags=re.DOTALL):
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    gymnasium.registry.clear()
    gymnasium.registry.update(known)


def importable(kind):
    for package in kind.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.env_id)
def test_it_trains(kind, tmp_path, capfd):
    importable(kind)
    given = {name: json.dumps(value) for name, value in kind.settings.items()}
    trained(kind.env_id, tmp_path, **given)
    run = iwes_mpi.open_run(tmp_path / "run")
    assert len(run.iterations) >= 2
    assert run.iterations["env_steps"].iloc[-1] >= 1000
    assert np.isfinite(run.iterations["return_mean"]).all()
    assert run.iterations["invalid_episodes"].sum() == 0
    told_apart = (run.iterations["return_std"] > 0).any()  # no random policy ends Acrobot within 100 steps
    assert (run.iterations["theta_digest"].nunique() > 1) == told_apart
    env = make_env(run.config)
    obs, _ = env.reset(seed=3)
    assert env.action_space.contains(run.policy(trust=True)(obs))
    env.close()


def trained(env_id, folder, **settings):
    """A run of a few small populations, in this process."""
    settings |= {"n_pairs": "2", "n_eval": "1", "min_env_steps": "0", "max_env_steps": "1000", "display": "none"}
    settings |= {"noise_table_size": "20000", "run_dir": str(folder / "run")}
    flags = [text for name, value in settings.items() for text in ("--" + name.replace("_", "-"), value)]
    assert train(World(), ["--env-id", env_id, *flags]) == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.env_id)
def test_an_episode_does_not_depend_on_those_before_it(kind):
    """Otherwise results would depend on which rank ran what."""
    importable(kind)
    config = Config(env_id=kind.env_id, hidden_sizes=(), **kind.settings)

    def episodes(samples):
        runner = open_runner(config)
        size = runner.network.obs_size
        normalizer = ObsStats(2.0, np.zeros(size), np.full(size, 2.0)).normalizer()
        found = {}
        for sample in samples:
            rng = generator(5, Stream.POPULATION_EPISODE, 0, sample)
            theta = np.random.default_rng(sample).normal(size=runner.network.n_parameters).astype(np.float32)
            found[sample] = runner.run(EpisodeTask(theta, normalizer, rng, 0.01, False))
        runner.close()
        return found

    forth, back = episodes([1, 2, 3]), episodes([3, 2, 1])
    assert forth == back
    assert all(np.isfinite(episode.total_reward) for episode in forth.values())


# -- what is refused -----------------------------------------------------------------------------------------


class Other(Drift):
    """Drift whose spaces, and observations, are others."""

    def __init__(self, observation_space=Drift.observation_space, action_space=Drift.action_space):
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space


VECTOR = Box(-1, 1, (2,))
IMAGE = Box(0, 255, (210, 160, 3), np.uint8)
REFUSED = {
    "image": ({"observation_space": IMAGE}, "these are images: .*FlattenObservation if .*`env_kwargs`.*ram"),
    "gray image": ({"observation_space": Box(0, 255, (84, 84), np.uint8)}, "these are images"),
    "matrix": ({"observation_space": Box(-1, 1, (3, 3))}, "type float32; .*wrap it in gymnasium.wrappers.FlattenObs"),
    "dict": ({"observation_space": Dict(a=VECTOR, b=VECTOR)}, r"Dict\(.*FlattenObservation"),
    "long dict": ({"observation_space": Dict({f"part{i}": VECTOR for i in range(99)})}, "…; .*FlattenObservation"),
    "tuple": ({"observation_space": Tuple([VECTOR, Discrete(3)])}, "FlattenObservation"),
    "state": ({"observation_space": Discrete(16)}, r"observations Discrete\(16\).*FlattenObservation"),
    "text": ({"observation_space": gymnasium.spaces.Text(9)}, "ObservationWrapper"),
    "empty": ({"observation_space": Box(-1, 1, (0,))}, "shape"),
    "multidiscrete": ({"action_space": MultiDiscrete([3, 4, 2])}, "actions MultiDiscrete.*number their 24 comb.*Trans"),
    "multibinary": ({"action_space": MultiBinary(5)}, "number their 32 combinations"),
    "action matrix": ({"action_space": Box(-1, 1, (2, 2))}, "actions Box of .*vectors in .*TransformAction"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_spaces_are_refused_with_advice(name):
    kwargs, said = REFUSED[name]
    gymnasium.register("Other-v0", entry_point=Other, max_episode_steps=9, kwargs=kwargs)
    try:
        with pytest.raises(WrongInput, match=said) as refused:
            make_env(Config(env_id="Other-v0"))
    finally:
        del gymnasium.registry["Other-v0"]
    assert refused.value.setting == "env_id"
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 400
    assert "docs/environments.md" in text


class Theirs(Drift):
    """Drift with Dict observations and MultiDiscrete actions, as in the page's example."""

    observation_space = Dict(place=Box(-np.inf, np.inf, (2,)), rest=Box(-np.inf, np.inf, (1,)))
    action_space = MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        state, info = super().reset(seed=seed, options=options)
        return self._parts(state), info

    def step(self, action):
        assert self.action_space.contains(np.array(action))
        state, *rest = super().step(np.subtract(action, 1.0))
        return self._parts(state), *rest

    @staticmethod
    def _parts(state):
        return {"place": state[:2].astype(np.float32), "rest": state[2:].astype(np.float32)}


@pytest.mark.slow
def test_the_example_of_the_page_trains(tmp_path, monkeypatch, capfd):
    gymnasium.register("Theirs-v0", entry_point=Theirs, max_episode_steps=50)
    monkeypatch.setitem(sys.modules, "their_module", types.ModuleType("their_module"))
    trained("flattened:Flattened-v0", tmp_path)
    run = iwes_mpi.open_run(tmp_path / "run")
    assert run.iterations["theta_digest"].is_unique
    assert run.theta.size == 3 * 6 + 6, "three observations, six combinations of actions"


def test_the_page_says_of_each_kind_whether_it_was_tried():
    rows = re.findall(r"^\| `([^`]+)`.*$", PAGE.partition("### What was tried")[2], flags=re.MULTILINE)
    assert {kind.env_id for kind in KINDS} <= set(rows)
