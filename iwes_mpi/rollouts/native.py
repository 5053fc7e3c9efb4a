"""Episodes of Gymnasium's MuJoCo tasks at MuJoCo's own speed: one compiled call runs a whole episode.

The call goes straight into libmujoco, holds no GIL and allocates nothing. It computes what `gym_runner.GymRunner` does
through Gymnasium, with the same compiled policy and statistics, to the same bits. What a task observes and rewards
is in `tasks`.
"""

import importlib
from typing import Any, NamedTuple

import gymnasium
import llvmlite.binding
import numba
import numpy as np
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts import generators, simulator
from iwes_mpi.rollouts.episode import Episode, EpisodeTask, Unsupported
from iwes_mpi.rollouts.seeds import SEED_BOUND
from iwes_mpi.rollouts.tasks import TASKS
from iwes_mpi.settings.config import Config

llvmlite.binding.load_library_permanently(str(simulator.library()))
_MODEL_AND_DATA = types.void(types.intp, types.intp)
mj_resetData = types.ExternalFunction("mj_resetData", _MODEL_AND_DATA)
mj_forward = types.ExternalFunction("mj_forward", _MODEL_AND_DATA)
mj_step = types.ExternalFunction("mj_step", _MODEL_AND_DATA)
mj_rnePostConstraint = types.ExternalFunction("mj_rnePostConstraint", _MODEL_AND_DATA)


def _rules(self: Any) -> Any:
    """The class of rules of a compiled argument."""
    return getattr(self, "instance_class", None)


def reset(self: Any, rng: Any) -> None:
    """Draw the start state of a task; compiled from the method of its class of rules."""
    self.reset(rng)


def observe(self: Any, obs: Any) -> None:
    """Fill a task's observation."""
    self.observe(obs)


def before(self: Any) -> Any:
    """What a task's reward needs to know from before a step."""
    return self.before()


def outcome(self: Any, before: Any, action: Any) -> tuple[float, bool]:
    """A step's reward, and whether the task terminates."""
    return self.outcome(before, action)


# No contraction in rules either (see `tasks.strict`); without this they would inherit the episode's.
_STRICT = {"fastmath": False}


@overload(reset, jit_options=_STRICT)
def _compile_reset(self, rng):
    return _rules(self).reset


@overload(observe, jit_options=_STRICT)
def _compile_observe(self, obs):
    return _rules(self).observe


@overload(before, jit_options=_STRICT)
def _compile_before(self):
    return _rules(self).before


@overload(outcome, jit_options=_STRICT)
def _compile_outcome(self, before, action):
    return _rules(self).outcome


class Simulation(NamedTuple):
    """What an episode runs on: MuJoCo's memory, and working memory of its own."""

    model: int  # address of the mjModel
    data: int  # address of the mjData
    frame_skip: int  # MuJoCo steps per environment step
    contact_forces: bool  # whether the rules read what mj_rnePostConstraint computes
    max_steps: int  # the time limit
    ctrl: NDArray[np.float64]  # (nu,) view of mjData
    instabilities: NDArray[np.int32]  # (3,) view of mjData, from `simulator.instabilities`
    env_bitgen: int  # address of the environment's PCG64
    words: NDArray[np.uint64]  # (8,)
    obs: NDArray[np.float64]  # (obs_size,)
    network: network.Layout
    scratch: NDArray[np.float32]  # of the network
    action: NDArray[np.float32]  # (action_size,)
    low: NDArray[np.float32]  # (action_size,) bounds of actions
    high: NDArray[np.float32]  # (action_size,)
    obs_clip: float


@kernel
def run_episode(rules, sim, theta, normalizer, bitgen, action_noise, stats, trace):
    """A whole episode, from reset to its end.

    Parameters
    ----------
    rules : NamedTuple
        Of a class in `tasks`.
    sim : Simulation
    theta : float32 (d,)
    normalizer : float64 (2, obs_size) or (1 + obs_size, obs_size)
    bitgen : int
        Address of the generator that draws the environment's seed, then the action noise.
    action_noise : float
    stats : float64 (1 + normalizer.size,) or (0,)
        Packed statistics that the observations enter; empty for none.
    trace : float64 (steps + 1, obs_size + 1) or (0, 0)
        Filled with every observation and the reward before it, for tests; empty for none.

    Returns
    -------
    total_reward : float
        NaN if the episode is invalid: an observation is not finite, or MuJoCo became unstable.
    length : int
        Environment steps.
    valid : bool
    """
    model, data, obs, action = sim.model, sim.data, sim.obs, sim.action
    noise = generators.generator_at(bitgen)
    generators.seed_pcg64(sim.env_bitgen, generators.draw_seed(noise), sim.words)
    mj_resetData(model, data)
    reset(rules, generators.generator_at(sim.env_bitgen))
    mj_forward(model, data)
    observe(rules, obs)
    total, reward, length = 0.0, 0.0, 0
    while True:
        if length < trace.shape[0]:
            trace[length, 0] = reward
            trace[length, 1:] = obs
        if not network.act(sim.network, theta, normalizer, sim.obs_clip, sim.scratch, obs, action):
            return np.nan, length, False
        if stats.shape[0] > 0:
            obs_stats.observe(stats, obs)
        network.add_noise(noise, action_noise, sim.low, sim.high, action)
        for j in range(action.shape[0]):
            sim.ctrl[j] = action[j]
        memory = before(rules)
        for _ in range(sim.frame_skip):
            mj_step(model, data)
        if sim.contact_forces:
            mj_rnePostConstraint(model, data)
        length += 1
        if sim.instabilities[0] + sim.instabilities[1] + sim.instabilities[2] > 0:
            return np.nan, length, False
        observe(rules, obs)
        reward, terminated = outcome(rules, memory, action)
        total += reward
        if terminated or length >= sim.max_steps:
            if length < trace.shape[0]:
                trace[length, 0] = reward
                trace[length, 1:] = obs
            return total, length, True


def _is_array(value: NDArray[Any], dtype: Any) -> bool:
    return value.dtype == dtype and value.flags.c_contiguous


_NO_STATS = np.zeros(0)
_NO_TRACE = np.zeros((0, 0))


class NativeRunner:
    """Runs episodes of an environment whose rules are in `tasks`.

    Parameters
    ----------
    config : Config
        Shapes the policy.
    env : gymnasium.Env
        From `environments.make_env`; its settings and its MuJoCo model are used, its methods are not.

    Raises
    ------
    Unsupported
        If it is not one of these environments, or has settings that the rules do not know.
    """

    def __init__(self, config: Config, env: gymnasium.Env[Any, Any]):
        rules, max_steps = _understand(env)
        self._env, inner = env, env.unwrapped
        space: Any = env.action_space
        obs_size = env.observation_space.shape[0]
        self.network = network.layout(obs_size, config.hidden_sizes, space.shape[0], config.bias, config.activation)
        self.description = f"{config.env_id} natively in MuJoCo {simulator.version()}"
        self._obs_size, self._rules, self.limit = obs_size, rules, max_steps
        self.seed_bound = SEED_BOUND
        self._env_rng = np.random.Generator(np.random.PCG64(0))
        simulation = Simulation(
            model=inner.model._address,
            data=inner.data._address,
            frame_skip=inner.frame_skip,
            contact_forces=bool(getattr(rules, "contact_forces", False)),
            max_steps=max_steps,
            ctrl=inner.data.ctrl,
            instabilities=simulator.instabilities(inner.data),
            env_bitgen=generators.address(self._env_rng),
            words=np.zeros(8, dtype=np.uint64),
            obs=np.zeros(obs_size),
            network=self.network,
            scratch=self.network.scratch(),
            action=np.zeros(space.shape[0], dtype=np.float32),
            low=space.low.astype(np.float32),
            high=space.high.astype(np.float32),
            obs_clip=config.obs_clip,
        )
        simulator.skip_islands(inner.model)
        self._no_clock = simulator.NoClock()
        self._simulations = {0: simulation}  # by cap: the newest, and whole episodes
        self._run: Any = None  # the compiled episode, once there has been one
        # Theta, normalizer and generator of the last episode, and the generator's address: often all are the same
        self._seen: tuple[Any, Any, Any] = (None, None, None)
        self._bitgen = 0

    def run(self, task: EpisodeTask, trace: NDArray[np.float64] = _NO_TRACE) -> Episode:
        """Run one episode; see `EpisodeRunner`.

        It is invalid if an observation or the return is not finite, or if MuJoCo became unstable on the way.
        `trace` is for tests; see `run_episode`.

        Raises
        ------
        TypeError
            If the task's arrays are not of the types that `EpisodeTask` says, or not contiguous.
        """
        theta, normalizer, rng = self._seen
        if not (task.theta is theta and task.normalizer is normalizer and task.rng is rng):  # as the last one was
            if not (_is_array(task.theta, np.float32) and _is_array(task.normalizer, np.float64)):
                raise TypeError("theta must be a contiguous float32 array, the normalizer a float64 one")
            self._seen, self._bitgen = (task.theta, task.normalizer, task.rng), generators.address(task.rng)
        if self._run is None:
            self._run = self._compile()
        stats = np.zeros(1 + task.normalizer.size) if task.observe else _NO_STATS
        total, length, valid = self._run(
            self._rules, self._cut(task.cap), task.theta, task.normalizer, self._bitgen,
            float(task.action_noise), stats, trace,
        )  # fmt: skip
        return Episode(total, length, stats if valid and task.observe else None)

    def _cut(self, cap: int) -> Simulation:
        """The simulation whose episodes end after `cap` steps at the latest; 0 for whole ones."""
        if cap not in self._simulations:
            whole = self._simulations[0]
            self._simulations = {0: whole, cap: whole._replace(max_steps=min(cap, whole.max_steps))}
        return self._simulations[cap]

    def rehearse(self, task: EpisodeTask) -> None:
        """See `EpisodeRunner`: an episode of one step."""
        self.run(task._replace(cap=1))

    def _compile(self) -> Any:
        """The machine code of `run_episode` for these rules.

        A call of `run_episode` itself looks for it by the types of all arguments each time, which was measured to
        take 4 µs: a third of a light environment's step.
        """
        return run_episode.compile(
            (
                numba.typeof(self._rules), numba.typeof(self._simulations[0]), numba.float32[::1],
                numba.float64[:, ::1], numba.intp, numba.float64, numba.float64[::1], numba.float64[:, ::1],
            )
        )  # fmt: skip

    def close(self) -> None:
        """Close the environment."""
        self._no_clock.close()
        self._env.close()


def _understand(env: gymnasium.Env[Any, Any]) -> tuple[Any, int]:
    """The rules and the time limit of an environment.

    Raises
    ------
    Unsupported
    """
    env_id = "" if env.spec is None else env.spec.id
    if env_id not in TASKS:
        raise Unsupported(f"no native rules are written for {env_id}; there are some for {', '.join(sorted(TASKS))}")
    kind, entry_point = TASKS[env_id]
    module, _, name = entry_point.partition(":")
    inner: Any = env.unwrapped
    if type(inner) is not getattr(importlib.import_module(module), name):
        raise Unsupported(f"{env_id} is registered as {type(inner).__qualname__}, not as Gymnasium's own class")
    limits = []
    layer: Any = env
    while layer is not inner:
        if type(layer) is TimeLimit:
            limits.append(layer._max_episode_steps)
        elif type(layer) is not OrderEnforcing:
            raise Unsupported(f"the wrapper {type(layer).__name__} is not known to the native rules")
        layer = layer.env
    if inner.render_mode is not None:
        raise Unsupported("native episodes are not rendered")
    if inner.model.nplugin > 0:
        raise Unsupported("the MuJoCo model uses plugins")
    if not generators.numpy_is_known():
        raise Unsupported(f"the generators of NumPy {np.__version__} have another form")
    try:
        rules = kind.read(inner)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise Unsupported(f"the native rules of {env_id} do not know these settings: {error}") from None
    return rules, min(limits)
