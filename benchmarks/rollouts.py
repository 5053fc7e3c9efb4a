"""Steps per second of native rollouts against bare MuJoCo and against Gymnasium; the policy against memory bandwidth.

    python benchmarks/rollouts.py [--tasks Ant-v5 Hopper-v5 …] [--hidden 64 64] [--rounds 15]
    python benchmarks/rollouts.py --policy

A round runs the same episodes in turn (1) natively, from the task to its return, reset and normalization, policy,
noise and reward included; (2) bare: a replay of the same controls from the same states in compiled code that does
nothing but set ``data.ctrl`` and call ``mj_step`` frame_skip times, with neither reset nor ``mj_rnePostConstraint``,
and with all that is known to make MuJoCo faster without changing a bit: its clock is off, and islands are not looked
for in models of one tree (`iwes_mpi.rollouts.simulator`); (3) through this program's Gymnasium path. Each replay must
end in the very state that the episode through Gymnasium ended in. Times are CPU time, so that other processes hardly
count.
Shown are medians over the rounds of each round's own ratio. The last column is (2) against (3): the most that a native
rollout can gain over Gymnasium while it steps as (2) does. With the 64×64 policy the exit code is 1 if a task has less
than `LEAST` of (2).
"""

import argparse
import sys
import time
from statistics import median

import mujoco
import numba
import numpy as np

from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts import simulator
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.rollouts.native import mj_rnePostConstraint, mj_step
from iwes_mpi.settings.config import Config

# Environment, its settings, and for a linear feedback its gains; other policies are random
TASKS = {
    "Ant-v5": ("Ant-v5", {}, None),
    "Ant-v4": ("Ant-v4", {"use_contact_forces": True}, None),
    "Humanoid-v5": ("Humanoid-v5", {}, None),
    "HumanoidStandup-v5": ("HumanoidStandup-v5", {}, None),
    "Hopper-v5": ("Hopper-v5", {}, None),
    "Walker2d-v5": ("Walker2d-v5", {}, None),
    "HalfCheetah-v5": ("HalfCheetah-v5", {}, None),
    "Swimmer-v5": ("Swimmer-v5", {}, None),
    "Pusher-v5": ("Pusher-v5", {}, None),
    "Reacher-v5": ("Reacher-v5", {}, None),
    "InvertedPendulum-v5": ("InvertedPendulum-v5", {}, None),
    "balanced": ("InvertedPendulum-v5", {}, (0.16, 2.75, 0.11, 0.14)),  # as it is for most of a training run
    "InvertedDoublePendulum-v5": ("InvertedDoublePendulum-v5", {}, None),
}
LEAST = dict.fromkeys(("Ant-v5", "Ant-v4", "Humanoid-v5", "Hopper-v5", "Walker2d-v5"), 0.95)  # else `LEAST_LIGHT`
LEAST_LIGHT = 0.90
HEAVY = ("Ant-v5", "Ant-v4", "Humanoid-v5", "HumanoidStandup-v5")


@numba.njit(nogil=True)
def replay(model, data, frame_skip, ctrl, controls, contact_forces):
    """Step through recorded controls, shape (steps, nu), and do nothing else."""
    for t in range(controls.shape[0]):
        for j in range(ctrl.shape[0]):
            ctrl[j] = controls[t, j]
        for _ in range(frame_skip):
            mj_step(model, data)
        if contact_forces:
            mj_rnePostConstraint(model, data)


class Recorder:
    """Stands before a Gymnasium environment and keeps the start state and the actions of an episode."""

    def __init__(self, env):
        self._env, self.unwrapped = env, env.unwrapped

    def reset(self, **arguments):
        """Reset and note the start state."""
        result = self._env.reset(**arguments)
        data = self.unwrapped.data
        self.start, self.actions = (data.qpos.copy(), data.qvel.copy()), []
        return result

    def step(self, action):
        """Step and note the action, and the state after it."""
        self.actions.append(action)
        result = self._env.step(action)
        data = self.unwrapped.data
        self.end = (data.qpos.tobytes(), data.qvel.tobytes())
        return result


def feedback(layout, gains):
    """A policy whose first unit of each layer passes gains·observation on, almost linearly, among random others."""
    theta, offset = layout.initial_parameters(np.random.default_rng(0)), 0
    for layer, (inputs, outputs) in enumerate(zip(layout.sizes[:-1], layout.sizes[1:], strict=True)):
        weights = theta[offset : offset + inputs * outputs].reshape(inputs, outputs)
        weights[:, 0] = 0.05 * np.array(gains) if layer == 0 else 0.0
        weights[0, 0] = 20.0 if layer == len(layout.sizes) - 2 else weights[0, 0] if layer == 0 else 1.0
        offset += (inputs + 1) * outputs
    return theta


def make_tasks(config, layout, steps, gains=None):
    """Task factories of episodes that together make at least so many environment steps, and how many they make."""
    rng = np.random.default_rng(0)
    normalizer = obs_stats.initial_stats(int(layout.sizes[0])).normalizer()

    def factory(sample):
        theta = network.empty_parameters(layout.n_parameters)
        theta[:] = feedback(layout, gains) if gains else layout.initial_parameters(rng)
        return lambda: EpisodeTask(
            theta, normalizer, generator(0, Stream.POPULATION_EPISODE, 0, sample), config.action_noise, False
        )

    runner = open_runner(config)
    tasks, total = [], 0
    while total < steps:
        tasks.append(factory(len(tasks)))
        total += runner.run(tasks[-1]()).length
    return tasks, total


def compare(name, hidden, rounds, steps):
    """A line of the table, and the share of bare MuJoCo in it."""
    env_id, env_kwargs, gains = TASKS[name]
    settings = {"env_id": env_id, "env_kwargs": env_kwargs, "hidden_sizes": hidden}
    native = open_runner(Config(**settings, rollouts="native"))
    through = open_runner(Config(**settings, rollouts="gymnasium"))
    tasks, total = make_tasks(Config(**settings), native.network, steps, gains)

    inner = through.env.unwrapped
    through.env, env = Recorder(through.env), through.env
    recordings = []
    for task in tasks:
        through.run(task())
        recordings.append((*through.env.start, np.array(through.env.actions), through.env.end))
    through.env = env
    model, data = inner.model, inner.data

    def replay_all(contact_forces):
        seconds, flags = 0.0, model.opt.disableflags
        simulator.skip_islands(model)
        for qpos, qvel, actions, end in recordings:
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = qpos, qvel
            mujoco.mj_forward(model, data)
            begin = time.process_time()
            replay(model._address, data._address, inner.frame_skip, data.ctrl, actions, contact_forces)
            seconds += time.process_time() - begin
            assert (data.qpos.tobytes(), data.qvel.tobytes()) == end, "the replay is not the episode"
        model.opt.disableflags = flags
        return seconds

    def run_all(runner):
        begin = time.process_time()
        for task in tasks:
            runner.run(task())
        return time.process_time() - begin

    times = []
    for _ in range(rounds + 1):  # the first compiles
        times.append((run_all(native), replay_all(False), replay_all(True), run_all(through)))
    times = times[1:]
    native.close()
    through.close()
    speed = total / median(t[0] for t in times)
    share = median(t[1] / t[0] for t in times)
    line = (
        f"{name:26s}{native.network.n_parameters:9d}{total / len(tasks):9.0f}{speed:11.0f}"
        f"{share:9.3f}{median(t[2] / t[0] for t in times):9.3f}"
        f"{median(t[3] / t[0] for t in times):10.2f}{median(t[3] / t[1] for t in times):11.2f}"
    )
    return line, share


@numba.njit(nogil=True)
def repeat_act(n, layout, theta, normalizer, clip, scratch, obs, out):
    """The policy n times over."""
    good = True
    for _ in range(n):
        good &= network.act(layout, theta, normalizer, clip, scratch, obs, out)
    return good


@numba.njit(nogil=True, fastmath=True)
def read(n, values):
    """Sum a float32 vector n times over: nothing but reading, sixteen accumulators wide and more."""
    total = np.float32(0)
    for k in range(n):
        part = np.float32(k)
        for i in range(values.shape[0]):
            part += values[i]
        total += part
    return total


def compare_policy(obs_size, action_size, hidden, rounds):
    """The policy's speed against reading its parameters: one line."""
    layout = network.layout(obs_size, hidden, action_size)
    rng = np.random.default_rng(0)
    theta = network.empty_parameters(layout.n_parameters)
    theta[:] = layout.initial_parameters(rng)
    normalizer = obs_stats.initial_stats(obs_size).normalizer()
    arguments = (
        layout, theta, normalizer, 5.0, layout.scratch(), rng.standard_normal(obs_size),
        np.zeros(action_size, dtype=np.float32),
    )  # fmt: skip
    n = max(1, 20_000_000 // theta.size)
    times = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        repeat_act(n, *arguments)
        middle = time.process_time()
        read(n, theta)
        times.append((middle - begin, time.process_time() - middle))
    times = times[1:]
    act = median(t[0] for t in times) / n
    return (
        f"{obs_size:4d} -> {' '.join(map(str, hidden)):10s} -> {action_size:3d}{theta.size:10d}{1e6 * act:10.2f}"
        f"{theta.nbytes / act / 1e9:10.1f}{median(t[1] / t[0] for t in times):10.2f}"
    )


def main():
    """Parse and print; 1 if a task is too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="ID")
    parser.add_argument("--hidden", nargs="*", type=int, default=[64, 64], metavar="N")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4000, help="environment steps a round, at least")
    parser.add_argument("--policy", action="store_true", help="the policy alone, against reading its parameters")
    arguments = parser.parse_args()
    if arguments.policy:
        print("network                        d    us/step      GB/s  of read bandwidth")
        for obs_size, action_size in ((17, 6), (111, 8), (348, 17)):
            for units in (64, 256, 512):
                print(compare_policy(obs_size, action_size, (units, units), arguments.rounds), flush=True)
        return 0
    print("task                              d   length    steps/s  of bare  of bare   times     bare, times")
    print("                                            natively  mj_step  + rnePC.  Gymnasium  Gymnasium")
    failed = False
    for name in arguments.tasks:
        steps = arguments.steps // 4 if name in HEAVY else arguments.steps
        line, share = compare(name, tuple(arguments.hidden), arguments.rounds, steps)
        print(line, flush=True)
        failed |= arguments.hidden == [64, 64] and round(share, 2) < LEAST.get(name, LEAST_LIGHT)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
