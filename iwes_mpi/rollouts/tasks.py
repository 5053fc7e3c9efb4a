"""The rules of Gymnasium's MuJoCo tasks, one small class each: what is observed, what is rewarded, when it ends.

`iwes_mpi.rollouts.native` compiles an episode around these rules. To add a task, write one more class:

* a NamedTuple whose fields are what the rules read: arrays that are views of MuJoCo's own memory (``data.qpos``
  changes as the simulation moves) and the settings of the environment;
* ``read(env)``, a classmethod in ordinary Python, makes it from the live (unwrapped) environment, so that keyword
  arguments are honored. It may raise TypeError, ValueError or AttributeError for settings it does not understand;
  the environment then runs through Gymnasium;
* four methods in the Python that Numba compiles. ``reset(rng)`` draws the start state into ``qpos`` and ``qvel`` in
  the order of the environment's ``reset_model``; ``observe(obs)`` fills the observation; ``before()`` returns what
  the reward needs to know from before the step (any scalar); ``outcome(before, action)`` returns the step's reward
  and whether the episode terminates;
* the decorator ``@task(id, entry point)``, which says what the class stands for.

If the rules read contact forces (``data.cfrc_ext``), a field ``contact_forces`` must say so: MuJoCo computes them on
request only (``mj_rnePostConstraint``). Then add the task to ``tests/test_native_rollouts.py``, which holds every
observation against Gymnasium's to the bit. To get there, do what the environment does in its order and its
precision: ``np.square(action)`` is float32, and a Python float times it is float32 as well.
"""

# ruff: noqa: D102 (what the methods of a task do is said above, once)

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel, multiply_add

Vector = NDArray[np.float64]

# Rules are compiled without `compiled.jit.kernel`'s contraction of a·b + c to one rounding: NumPy rounds twice.
strict = kernel(contract=False)

TASKS: dict[str, tuple[type[Any], str]] = {}  # Gymnasium id: class of rules, the environment's entry point


def task(env_id: str, entry_point: str) -> Callable[[type[Any]], type[Any]]:
    """Declare a class of rules to be those of a registered environment, made by the class at `entry_point`."""

    def declare(rules: type[Any]) -> type[Any]:
        TASKS[env_id] = (rules, entry_point)
        return rules

    return declare


# -- what rules are made of ----------------------------------------------------------------------------------


class State(NamedTuple):
    """The simulation's generalized coordinates, and where episodes start."""

    qpos: Vector  # (nq,) view of mjData
    qvel: Vector  # (nv,) view of mjData
    init_qpos: Vector  # (nq,)
    init_qvel: Vector  # (nv,)
    noise: float  # scale of the random offset at the start


def read_state(env: Any, noise: float) -> State:
    """The state of a MujocoEnv.

    Raises
    ------
    ValueError
        If Gymnasium would refuse to draw noise of this scale.
    """
    if not 0 <= float(noise) < np.inf:
        raise ValueError(f"reset_noise_scale {noise}")
    return State(env.data.qpos, env.data.qvel, env.init_qpos.copy(), env.init_qvel.copy(), float(noise))


def switch(value: Any) -> bool:
    """A setting that must be a bool: Gymnasium's environments do arithmetic with these.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not a bool")
    return value


def interval(value: Any) -> tuple[float, float]:
    """A setting (lowest, highest)."""
    low, high = value
    return float(low), float(high)


def body(env: Any, name: int | str) -> Vector:
    """The position of a body, a view of mjData, shape (3,)."""
    position: Vector = env.data.body(name).xpos
    return position


@strict
def uniform_start(state, rng):
    """Start from uniform offsets of positions and velocities."""
    for j in range(state.qpos.shape[0]):
        state.qpos[j] = state.init_qpos[j] + rng.uniform(-state.noise, state.noise)
    for j in range(state.qvel.shape[0]):
        state.qvel[j] = state.init_qvel[j] + rng.uniform(-state.noise, state.noise)


@strict
def gaussian_start(state, rng):
    """Start from uniform offsets of positions and Gaussian ones of velocities."""
    for j in range(state.qpos.shape[0]):
        state.qpos[j] = state.init_qpos[j] + rng.uniform(-state.noise, state.noise)
    for j in range(state.qvel.shape[0]):
        state.qvel[j] = state.init_qvel[j] + state.noise * rng.standard_normal()


@strict
def put(obs, at, values):
    """Copy a vector into the observation from place `at`; returns the place after it."""
    for j in range(values.shape[0]):
        obs[at + j] = values[j]
    return at + values.shape[0]


@strict
def clip(x, low, high):
    """`np.clip` of a scalar, NaN included."""
    x = low if x < low else x
    return high if x > high else x


@strict
def put_clipped(obs, at, values, low, high):
    """`put` with `clip`."""
    for j in range(values.shape[0]):
        obs[at + j] = clip(values[j], low, high)
    return at + values.shape[0]


@strict
def finite(values):
    """Whether all numbers of a vector are."""
    good = True
    for j in range(values.shape[0]):
        good &= np.isfinite(values[j])
    return good


@strict
def inside(x, limits):
    """Whether low < x < high."""
    return limits[0] < x < limits[1]


@strict
def sum_squares_short(x):
    """`sum_squares` of at most 128 numbers."""
    n = x.shape[0]
    if n < 8:
        total = x.dtype.type(0.0)
        for j in range(n):
            total += x[j] * x[j]
        return total
    s0, s1, s2, s3 = x[0] * x[0], x[1] * x[1], x[2] * x[2], x[3] * x[3]
    s4, s5, s6, s7 = x[4] * x[4], x[5] * x[5], x[6] * x[6], x[7] * x[7]
    whole = n - n % 8
    for j in range(8, whole, 8):
        s0 += x[j] * x[j]
        s1 += x[j + 1] * x[j + 1]
        s2 += x[j + 2] * x[j + 2]
        s3 += x[j + 3] * x[j + 3]
        s4 += x[j + 4] * x[j + 4]
        s5 += x[j + 5] * x[j + 5]
        s6 += x[j + 6] * x[j + 6]
        s7 += x[j + 7] * x[j + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for j in range(whole, n):
        total += x[j] * x[j]
    return total


@strict
def sum_squares(x):
    """Σ x² in x's precision, in the order of ``np.sum(np.square(x))``: halves of more than 128 numbers one by one."""
    n = x.shape[0]
    if n <= 128:
        return sum_squares_short(x)
    half = n // 2 - n // 2 % 8
    return sum_squares(x[:half]) + sum_squares(x[half:])


@strict
def sum_clipped_squares(x, limits, scratch):
    """Σ clip(x)², in the order of NumPy's sum; `scratch` is working memory of x's size."""
    put_clipped(scratch, 0, x, limits[0], limits[1])
    return sum_squares(scratch)


def dot_fuses() -> bool:
    """Whether ``np.dot``, and so ``np.linalg.norm``, rounds a·b + c once: the BLAS decides by the kind of CPU."""
    x, y = np.array([1.0 + 2.0**-29, 1.0 + 2.0**-30, 0.0]), np.array([-1.0, 1.0 + 2.0**-30, 0.0])
    return bool(np.dot(x, y) != 0)  # 2**-60 is what the second product loses if it is rounded


@strict
def norm(x, y, z, fused):
    """``np.linalg.norm`` of (x, y, z); `fused` as `dot_fuses` says."""
    if fused:
        return np.sqrt(multiply_add(z, z, multiply_add(y, y, x * x)))
    return np.sqrt(x * x + y * y + z * z)


@strict
def power(x, exponent):
    """A scalar's ``**`` in NumPy: the C library's ``pow``, whose squares are not quite x·x.

    A task has to hold the exponent in a field: of one that it knows the compiler makes a product.
    """
    return x**exponent


@strict
def distance(a, b, fused):
    """The Euclidean distance of two points; `fused` as `dot_fuses` says."""
    return norm(a[0] - b[0], a[1] - b[1], a[2] - b[2], fused)


# -- the tasks -----------------------------------------------------------------------------------------------


@task("HalfCheetah-v5", "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv")
class HalfCheetah(NamedTuple):
    """Run: the velocity counts, control costs; an episode ends at its time limit only."""

    state: State
    hidden: int  # leading positions left out of the observation
    forward_weight: float
    control_weight: np.float32
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "HalfCheetah":
        return cls(
            read_state(env, env._reset_noise_scale), int(switch(env._exclude_current_positions_from_observation)),
            float(env._forward_reward_weight), np.float32(env._ctrl_cost_weight), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        gaussian_start(self.state, rng)

    def observe(self, obs):
        put(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel)

    def before(self):
        return self.state.qpos[0]

    def outcome(self, before, action):
        velocity = (self.state.qpos[0] - before) / self.dt
        return self.forward_weight * velocity - self.control_weight * sum_squares(action), False


@task("Swimmer-v5", "gymnasium.envs.mujoco.swimmer_v5:SwimmerEnv")
class Swimmer(NamedTuple):
    """Swim: the velocity counts, control costs; an episode ends at its time limit only."""

    state: State
    hidden: int  # leading positions left out of the observation
    forward_weight: float
    control_weight: np.float32
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "Swimmer":
        return cls(
            read_state(env, env._reset_noise_scale), 2 * switch(env._exclude_current_positions_from_observation),
            float(env._forward_reward_weight), np.float32(env._ctrl_cost_weight), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        uniform_start(self.state, rng)

    def observe(self, obs):
        put(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel)

    def before(self):
        return self.state.qpos[0]

    def outcome(self, before, action):
        velocity = (self.state.qpos[0] - before) / self.dt
        return self.forward_weight * velocity - self.control_weight * sum_squares(action), False


@task("Hopper-v5", "gymnasium.envs.mujoco.hopper_v5:HopperEnv")
class Hopper(NamedTuple):
    """Hop forwards: velocity and health count, control costs; ends when the torso is too low or tilted."""

    state: State
    hidden: int  # leading positions left out of the observation
    forward_weight: float
    control_weight: np.float32
    healthy_reward: float
    ends_unhealthy: bool
    healthy_state: tuple[float, float]  # of all positions and velocities but the first two
    healthy_z: tuple[float, float]
    healthy_angle: tuple[float, float]
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "Hopper":
        return cls(
            read_state(env, env._reset_noise_scale), int(switch(env._exclude_current_positions_from_observation)),
            float(env._forward_reward_weight), np.float32(env._ctrl_cost_weight), float(env._healthy_reward),
            bool(env._terminate_when_unhealthy), interval(env._healthy_state_range), interval(env._healthy_z_range),
            interval(env._healthy_angle_range), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        uniform_start(self.state, rng)

    def observe(self, obs):
        put_clipped(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel, -10.0, 10.0)

    def before(self):
        return self.state.qpos[0]

    def outcome(self, before, action):
        qpos, qvel = self.state.qpos, self.state.qvel
        healthy = inside(qpos[1], self.healthy_z) and inside(qpos[2], self.healthy_angle)
        for j in range(2, qpos.shape[0]):
            healthy &= inside(qpos[j], self.healthy_state)
        for j in range(qvel.shape[0]):
            healthy &= inside(qvel[j], self.healthy_state)
        velocity = (qpos[0] - before) / self.dt
        gain = self.forward_weight * velocity + (self.healthy_reward if healthy else 0.0)
        return gain - self.control_weight * sum_squares(action), self.ends_unhealthy and not healthy


@task("Walker2d-v5", "gymnasium.envs.mujoco.walker2d_v5:Walker2dEnv")
class Walker2d(NamedTuple):
    """Walk forwards: velocity and health count, control costs; ends when the torso is too low, high or tilted."""

    state: State
    hidden: int  # leading positions left out of the observation
    forward_weight: float
    control_weight: np.float32
    healthy_reward: float
    ends_unhealthy: bool
    healthy_z: tuple[float, float]
    healthy_angle: tuple[float, float]
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "Walker2d":
        return cls(
            read_state(env, env._reset_noise_scale), int(switch(env._exclude_current_positions_from_observation)),
            float(env._forward_reward_weight), np.float32(env._ctrl_cost_weight), float(env._healthy_reward),
            bool(env._terminate_when_unhealthy), interval(env._healthy_z_range), interval(env._healthy_angle_range),
            env.dt,
        )  # fmt: skip

    def reset(self, rng):
        uniform_start(self.state, rng)

    def observe(self, obs):
        put_clipped(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel, -10.0, 10.0)

    def before(self):
        return self.state.qpos[0]

    def outcome(self, before, action):
        qpos = self.state.qpos
        healthy = inside(qpos[1], self.healthy_z) and inside(qpos[2], self.healthy_angle)
        velocity = (qpos[0] - before) / self.dt
        gain = self.forward_weight * velocity + (self.healthy_reward if healthy else 0.0)
        return gain - self.control_weight * sum_squares(action), self.ends_unhealthy and not healthy


@task("Ant-v5", "gymnasium.envs.mujoco.ant_v5:AntEnv")
class Ant(NamedTuple):
    """Walk forwards: velocity and health count, control and contact cost; ends when the torso is too low or high."""

    state: State
    main_body: Vector  # (3,) whose velocity counts
    cfrc_ext: Vector  # (6·nbody,) contact forces, by body; the first is the world's
    clipped: Vector  # (6·nbody,) working memory
    contact_forces: bool  # whether anything depends on them
    hidden: int  # leading positions left out of the observation
    observe_contact: bool
    contact_range: tuple[float, float]
    forward_weight: float
    control_weight: np.float32
    contact_weight: float
    healthy_reward: float
    ends_unhealthy: bool
    healthy_z: tuple[float, float]
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "Ant":
        observe_contact, contact_weight = switch(env._include_cfrc_ext_in_observation), float(env._contact_cost_weight)
        return cls(
            read_state(env, env._reset_noise_scale), body(env, env._main_body), env.data.cfrc_ext.reshape(-1),
            np.zeros(env.data.cfrc_ext.size), observe_contact or contact_weight != 0,
            2 * switch(env._exclude_current_positions_from_observation), observe_contact,
            interval(env._contact_force_range), float(env._forward_reward_weight), np.float32(env._ctrl_cost_weight),
            contact_weight, float(env._healthy_reward), bool(env._terminate_when_unhealthy),
            interval(env._healthy_z_range), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        gaussian_start(self.state, rng)

    def observe(self, obs):
        at = put(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel)
        if self.observe_contact:
            put_clipped(obs, at, self.cfrc_ext[6:], self.contact_range[0], self.contact_range[1])

    def before(self):
        return self.main_body[0]

    def outcome(self, before, action):
        qpos = self.state.qpos
        healthy = self.healthy_z[0] <= qpos[2] <= self.healthy_z[1] and finite(qpos) and finite(self.state.qvel)
        velocity = (self.main_body[0] - before) / self.dt
        gain = velocity * self.forward_weight + (self.healthy_reward if healthy else 0.0)
        cost = self.control_weight * sum_squares(action)
        if self.contact_forces:
            cost += self.contact_weight * sum_clipped_squares(self.cfrc_ext, self.contact_range, self.clipped)
        return gain - cost, self.ends_unhealthy and not healthy


@task("Ant-v4", "gymnasium.envs.mujoco.ant_v4:AntEnv")
class AntV4(NamedTuple):
    """Ant-v5 with the torso as main body and, with use_contact_forces, the world's forces observed too."""

    state: State
    torso: Vector  # (3,)
    cfrc_ext: Vector  # (6·nbody,) contact forces, by body
    clipped: Vector  # (6·nbody,) working memory
    contact_forces: bool  # whether they are observed and cost
    hidden: int  # leading positions left out of the observation
    contact_range: tuple[float, float]
    control_weight: np.float32
    contact_weight: float
    healthy_reward: float
    ends_unhealthy: bool
    healthy_z: tuple[float, float]
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "AntV4":
        return cls(
            read_state(env, env._reset_noise_scale), body(env, "torso"), env.data.cfrc_ext.reshape(-1),
            np.zeros(env.data.cfrc_ext.size), switch(env._use_contact_forces),
            2 * switch(env._exclude_current_positions_from_observation), interval(env._contact_force_range),
            np.float32(env._ctrl_cost_weight), float(env._contact_cost_weight), float(env._healthy_reward),
            bool(env._terminate_when_unhealthy), interval(env._healthy_z_range), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        gaussian_start(self.state, rng)

    def observe(self, obs):
        at = put(obs, put(obs, 0, self.state.qpos[self.hidden :]), self.state.qvel)
        if self.contact_forces:
            put_clipped(obs, at, self.cfrc_ext, self.contact_range[0], self.contact_range[1])

    def before(self):
        return self.torso[0]

    def outcome(self, before, action):
        qpos = self.state.qpos
        healthy = self.healthy_z[0] <= qpos[2] <= self.healthy_z[1] and finite(qpos) and finite(self.state.qvel)
        velocity = (self.torso[0] - before) / self.dt
        gain = velocity + (self.healthy_reward if healthy or self.ends_unhealthy else 0.0)
        cost = self.control_weight * sum_squares(action)
        if self.contact_forces:
            cost += self.contact_weight * sum_clipped_squares(self.cfrc_ext, self.contact_range, self.clipped)
        return gain - cost, self.ends_unhealthy and not healthy


class Humanlike(NamedTuple):
    """What both humanoid tasks observe besides positions and velocities; what is not observed is empty."""

    state: State
    hidden: int  # leading positions left out of the observation
    cinert: Vector  # (10·(nbody − 1),) inertia and mass of each body
    cvel: Vector  # (6·(nbody − 1),) velocity of each body
    qfrc_actuator: Vector  # (nv − 6,) actuator force on each joint
    cfrc_ext: Vector  # (6·(nbody − 1),) contact force on each body

    @classmethod
    def read(cls, env: Any) -> "Humanlike":
        """From a HumanoidEnv or HumanoidStandupEnv."""
        data = env.data

        def part(name: str, values: NDArray[np.float64]) -> Vector:
            return values.reshape(-1) if switch(getattr(env, f"_include_{name}_in_observation")) else np.zeros(0)

        return cls(
            read_state(env, env._reset_noise_scale), 2 * switch(env._exclude_current_positions_from_observation),
            part("cinert", data.cinert[1:]), part("cvel", data.cvel[1:]),
            part("qfrc_actuator", data.qfrc_actuator[6:]), part("cfrc_ext", data.cfrc_ext[1:]),
        )  # fmt: skip


@strict
def observe_humanlike(seen, obs):
    """Fill the observation of a humanoid task."""
    at = put(obs, put(obs, 0, seen.state.qpos[seen.hidden :]), seen.state.qvel)
    at = put(obs, put(obs, at, seen.cinert), seen.cvel)
    put(obs, put(obs, at, seen.qfrc_actuator), seen.cfrc_ext)


@task("Humanoid-v5", "gymnasium.envs.mujoco.humanoid_v5:HumanoidEnv")
class Humanoid(NamedTuple):
    """Walk forwards: the center of mass's velocity and health count, control and contact cost; ends after a fall."""

    seen: Humanlike
    contact_forces: bool  # whether anything depends on them
    body_mass: Vector  # (nbody,)
    total_mass: float
    xipos: NDArray[np.float64]  # (nbody, 3) the bodies' centers of mass
    ctrl: Vector  # (nu,)
    cfrc_ext: Vector  # (6·nbody,)
    forward_weight: float
    control_weight: float
    contact_weight: float
    contact_range: tuple[float, float]  # of the cost
    healthy_reward: float
    ends_unhealthy: bool
    healthy_z: tuple[float, float]
    dt: float  # s per step

    @classmethod
    def read(cls, env: Any) -> "Humanoid":
        seen, contact_weight, mass = Humanlike.read(env), float(env._contact_cost_weight), env.model.body_mass
        return cls(
            seen, seen.cfrc_ext.size > 0 or contact_weight != 0, mass, float(mass.sum()), env.data.xipos, env.data.ctrl,
            env.data.cfrc_ext.reshape(-1), float(env._forward_reward_weight), float(env._ctrl_cost_weight),
            contact_weight, interval(env._contact_cost_range), float(env._healthy_reward),
            bool(env._terminate_when_unhealthy), interval(env._healthy_z_range), env.dt,
        )  # fmt: skip

    def reset(self, rng):
        uniform_start(self.seen.state, rng)

    def observe(self, obs):
        observe_humanlike(self.seen, obs)

    def before(self):
        moment = 0.0
        for b in range(self.body_mass.shape[0]):
            moment += self.body_mass[b] * self.xipos[b, 0]
        return moment / self.total_mass

    def outcome(self, before, action):
        moment = 0.0
        for b in range(self.body_mass.shape[0]):
            moment += self.body_mass[b] * self.xipos[b, 0]
        velocity = (moment / self.total_mass - before) / self.dt
        healthy = inside(self.seen.state.qpos[2], self.healthy_z)
        gain = self.forward_weight * velocity + (self.healthy_reward if healthy else 0.0)
        contact = self.contact_weight * sum_squares(self.cfrc_ext) if self.contact_forces else 0.0
        cost = self.control_weight * sum_squares(self.ctrl)
        cost += clip(contact, self.contact_range[0], self.contact_range[1])
        return gain - cost, self.ends_unhealthy and not healthy


@task("HumanoidStandup-v5", "gymnasium.envs.mujoco.humanoidstandup_v5:HumanoidStandupEnv")
class HumanoidStandup(NamedTuple):
    """Stand up: the height counts, control and impacts cost; an episode ends at its time limit only."""

    seen: Humanlike
    contact_forces: bool  # whether anything depends on them
    ctrl: Vector  # (nu,)
    cfrc_ext: Vector  # (6·nbody,)
    control_weight: float
    impact_weight: float
    impact_range: tuple[float, float]  # of the cost
    timestep: float  # s per MuJoCo step

    @classmethod
    def read(cls, env: Any) -> "HumanoidStandup":
        seen, impact_weight = Humanlike.read(env), float(env._impact_cost_weight)
        return cls(
            seen, seen.cfrc_ext.size > 0 or impact_weight != 0, env.data.ctrl, env.data.cfrc_ext.reshape(-1),
            float(env._ctrl_cost_weight), impact_weight, interval(env._impact_cost_range), env.model.opt.timestep,
        )  # fmt: skip

    def reset(self, rng):
        uniform_start(self.seen.state, rng)

    def observe(self, obs):
        observe_humanlike(self.seen, obs)

    def before(self):
        return 0.0

    def outcome(self, before, action):
        impact = self.impact_weight * sum_squares(self.cfrc_ext) if self.contact_forces else 0.0
        impact = clip(impact, self.impact_range[0], self.impact_range[1])
        up = self.seen.state.qpos[2] / self.timestep
        return up - self.control_weight * sum_squares(self.ctrl) - impact + 1.0, False


@task("InvertedPendulum-v5", "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv")
class InvertedPendulum(NamedTuple):
    """Balance a pole on a cart: every step counts 1; ends when the pole tilts by more than 0.2."""

    state: State

    @classmethod
    def read(cls, env: Any) -> "InvertedPendulum":
        return cls(read_state(env, env._reset_noise_scale))

    def reset(self, rng):
        uniform_start(self.state, rng)

    def observe(self, obs):
        put(obs, put(obs, 0, self.state.qpos), self.state.qvel)

    def before(self):
        return 0.0

    def outcome(self, before, action):
        qpos = self.state.qpos
        fallen = not (finite(qpos) and finite(self.state.qvel)) or abs(qpos[1]) > 0.2
        return 0.0 if fallen else 1.0, fallen


@task("InvertedDoublePendulum-v5", "gymnasium.envs.mujoco.inverted_double_pendulum_v5:InvertedDoublePendulumEnv")
class InvertedDoublePendulum(NamedTuple):
    """Balance two linked poles on a cart: every step counts, less distance and velocity; ends with the tip at 1."""

    state: State
    tip: Vector  # (3,)
    qfrc_constraint: Vector  # (nv,)
    healthy_reward: float
    two: float  # for `power`

    @classmethod
    def read(cls, env: Any) -> "InvertedDoublePendulum":
        return cls(
            read_state(env, env._reset_noise_scale), env.data.site_xpos[0], env.data.qfrc_constraint,
            float(env._healthy_reward), 2.0,
        )  # fmt: skip

    def reset(self, rng):
        gaussian_start(self.state, rng)

    def observe(self, obs):
        qpos = self.state.qpos
        joints = qpos.shape[0] - 1
        obs[0] = qpos[0]
        for j in range(joints):
            obs[1 + j] = np.sin(qpos[1 + j])
            obs[1 + joints + j] = np.cos(qpos[1 + j])
        at = put_clipped(obs, 1 + 2 * joints, self.state.qvel, -10.0, 10.0)
        obs[at] = clip(self.qfrc_constraint[0], -10.0, 10.0)

    def before(self):
        return 0.0

    def outcome(self, before, action):
        x, y = self.tip[0], self.tip[2]
        v1, v2 = self.state.qvel[1], self.state.qvel[2]
        fallen = y <= 1.0
        distance_penalty = 0.01 * power(x, self.two) + power(y - 2.0, self.two)
        velocity_penalty = 1e-3 * power(v1, self.two) + 5e-3 * power(v2, self.two)
        return (0.0 if fallen else self.healthy_reward) - distance_penalty - velocity_penalty, fallen


@task("Reacher-v5", "gymnasium.envs.mujoco.reacher_v5:ReacherEnv")
class Reacher(NamedTuple):
    """Bring an arm's fingertip to a target: distance and control cost; an episode ends at its time limit only."""

    state: State
    fingertip: Vector  # (3,)
    target: Vector  # (3,)
    distance_weight: float
    control_weight: np.float32
    fused: bool  # how NumPy computes norms

    @classmethod
    def read(cls, env: Any) -> "Reacher":
        return cls(
            read_state(env, 0.1), body(env, "fingertip"), body(env, "target"), float(env._reward_dist_weight),
            np.float32(env._reward_control_weight), dot_fuses(),
        )  # fmt: skip

    def reset(self, rng):
        qpos, qvel = self.state.qpos, self.state.qvel
        for j in range(qpos.shape[0]):
            qpos[j] = rng.uniform(-self.state.noise, self.state.noise) + self.state.init_qpos[j]
        while True:
            x = rng.uniform(-0.2, 0.2)
            y = rng.uniform(-0.2, 0.2)
            if norm(x, y, 0.0, self.fused) < 0.2:
                break
        qpos[-2] = x
        qpos[-1] = y
        for j in range(qvel.shape[0]):
            qvel[j] = self.state.init_qvel[j] + rng.uniform(-0.005, 0.005)
        qvel[-2:] = 0.0

    def observe(self, obs):
        qpos = self.state.qpos
        for j in range(2):
            obs[j] = np.cos(qpos[j])
            obs[2 + j] = np.sin(qpos[j])
        at = put(obs, put(obs, 4, qpos[2:]), self.state.qvel[:2])
        for j in range(2):
            obs[at + j] = self.fingertip[j] - self.target[j]

    def before(self):
        return 0.0

    def outcome(self, before, action):
        reach = -distance(self.fingertip, self.target, self.fused) * self.distance_weight
        return reach - sum_squares(action) * self.control_weight, False


@task("Pusher-v5", "gymnasium.envs.mujoco.pusher_v5:PusherEnv")
class Pusher(NamedTuple):
    """Push a cylinder to a goal: distances and control cost; an episode ends at its time limit only."""

    state: State
    tips_arm: Vector  # (3,)
    object: Vector  # (3,)
    goal: Vector  # (3,)
    near_weight: float
    distance_weight: float
    control_weight: np.float32
    fused: bool  # how NumPy computes norms

    @classmethod
    def read(cls, env: Any) -> "Pusher":
        return cls(
            read_state(env, 0.005), body(env, "tips_arm"), body(env, "object"), body(env, "goal"),
            float(env._reward_near_weight), float(env._reward_dist_weight), np.float32(env._reward_control_weight),
            dot_fuses(),
        )  # fmt: skip

    def reset(self, rng):
        qpos, qvel = self.state.qpos, self.state.qvel
        qpos[:] = self.state.init_qpos
        while True:
            x = rng.uniform(-0.3, 0.0)
            y = rng.uniform(-0.2, 0.2)
            if norm(x, y, 0.0, self.fused) > 0.17:
                break
        qpos[-4] = x
        qpos[-3] = y
        qpos[-2:] = 0.0
        for j in range(qvel.shape[0]):
            qvel[j] = self.state.init_qvel[j] + rng.uniform(-self.state.noise, self.state.noise)
        qvel[-4:] = 0.0

    def observe(self, obs):
        at = put(obs, put(obs, 0, self.state.qpos[:7]), self.state.qvel[:7])
        put(obs, put(obs, put(obs, at, self.tips_arm), self.object), self.goal)

    def before(self):
        return 0.0

    def outcome(self, before, action):
        near = -distance(self.object, self.tips_arm, self.fused) * self.near_weight
        far = -distance(self.object, self.goal, self.fused) * self.distance_weight
        return far - sum_squares(action) * self.control_weight + near, False
