"""What each option beyond the paper costs: time per iteration beside the same run without it.

    python benchmarks/options.py [--env-id HalfCheetah-v5] [--rounds 7] [--iterations 20] [option …]

One process runs both, the first few iterations of each in turn, so that noise of the machine meets both alike, and
policies that move alike. An iteration is
the quickstart's: a linear policy, 8 pairs of 100 steps, 8 further updates. Printed are the medians over rounds of how
many times as long an iteration is, of what is spent more outside of episodes (weights, updates, statistics, choosing
samples) as a share of an iteration without the option, and of the environment steps beside those without it. Exits
with 1 if an option with as many steps makes iterations more than LIMIT times as long.
"""

import argparse
import statistics
import sys
import time
from typing import Any, NamedTuple

from iwes_mpi.method.es import EvolutionStrategies
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phase
from iwes_mpi.method.rehearsal import rehearse
from iwes_mpi.method.state import initial_state
from iwes_mpi.mpi.world import World
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.settings.config import Config

BASE: dict[str, Any] = {
    "hidden_sizes": (), "n_pairs": 8, "train_episode_steps": 100, "sigma": 0.064, "step_in_sigma": 0.3,
    "iw_updates": 8, "min_ess": 0.0, "n_eval": 0, "noise_table_size": 10_000_000, "schedule": "static",
}  # fmt: skip
# Small steps and no stop rule: every iteration makes all updates, with any option.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain ES (--iw-updates 0)": {"iw_updates": 0},
    "--min-ess 0.01": {"min_ess": 0.01},
    "--max-kl 100": {"max_kl": 100.0},
    "--max-step 0.5": {"max_step": 0.5},
    "--center --clip inf": {"center": True, "clip": float("inf")},
    "--cross-fit": {"cross_fit": True},
    "--weigh-pairs": {"weigh_pairs": True},
    "--repeat-gradient": {"repeat_gradient": True},
    "--reuse-batches 2": {"reuse_batches": 2},
    "--reuse-batches 4": {"reuse_batches": 4},
    "--importance-mixing 0.1": {"importance_mixing": 0.1},
    "--whiten": {"whiten": True},
    "--shaping log-rank": {"shaping": "log-rank"},
    "--shaping top-directions": {"shaping": "top-directions"},
    "--optimizer clipup": {"optimizer": "clipup"},
    "--common-random-numbers": {"common_random_numbers": True},
    "--sigma-schedule cosine --learning-rate-schedule linear": {
        "sigma_schedule": "cosine", "learning_rate_schedule": "linear", "schedule_iterations": 100_000,
    },
    "--episode-schedule budget": {"episode_schedule": "budget", "max_episode_steps": 100},
    "--episode-schedule survivors": {"episode_schedule": "survivors", "max_episode_steps": 100},
}  # fmt: skip
LIMIT = 1.25  # whole iterations with an option, beside those without


class Timed(NamedTuple):
    """Some iterations."""

    seconds: float  # per iteration
    outside: float  # s per iteration that is not spent on episodes
    steps: float  # environment steps per iteration


class Session:
    """A run without files, some iterations at a time.

    Parameters
    ----------
    env_id : str
    settings : dict
        Besides `BASE`.
    """

    def __init__(self, env_id: str, settings: dict[str, Any]):
        self._world = World()
        config = Config(**(BASE | {"env_id": env_id} | settings))
        self._runner = open_runner(config)
        rehearse(config, self._runner)
        self._config, self._noise = config, NoiseTable(self._world, 0, config.noise_table_size or 0, with_norms=False)

    def pending(self) -> bool:
        """Nobody asks to stop."""
        return False

    def run(self, iterations: int) -> Timed:
        """Time the first iterations of a run."""
        config = self._config
        state = initial_state(0, self._runner.network, config.optimizer, config.train_episode_steps or 0, config.whiten)
        es = EvolutionStrategies(config, self._world, self._runner, self._noise, state, self)  # type: ignore[arg-type]
        begin, outside = time.perf_counter(), 0.0
        for _ in range(iterations):
            seconds = es.iterate().seconds
            outside += sum(seconds.values()) - seconds[Phase.ROLLOUTS]
        return Timed((time.perf_counter() - begin) / iterations, outside / iterations, state.env_steps / iterations)


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="option", help="words that an option must contain [default all]")
    parser.add_argument("--env-id", default="HalfCheetah-v5")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=20, help="of each in a round")
    arguments = parser.parse_args()
    chosen = {
        name: settings
        for name, settings in OPTIONS.items()
        if not arguments.options or any(word in name for word in arguments.options)
    }
    plain = Session(arguments.env_id, {})
    plain.run(arguments.iterations)
    slow = []
    print(f"{'':56}{'iteration':>10}{'outside of episodes':>21}{'steps':>8}")
    for name, settings in chosen.items():
        session = Session(arguments.env_id, settings)
        session.run(arguments.iterations)
        ratios, outside, steps = [], [], []
        for _ in range(arguments.rounds):
            a, b = plain.run(arguments.iterations), session.run(arguments.iterations)
            ratios.append(b.seconds / a.seconds)
            outside.append((b.outside - a.outside) / a.seconds)
            steps.append(b.steps / a.steps)
        ratio = statistics.median(ratios)
        same = abs(statistics.median(steps) - 1) < 1e-9  # importance mixing runs fewer episodes
        if same and ratio > LIMIT:
            slow.append(name)
        print(f"{name:56}{ratio:10.2f}{statistics.median(outside):+20.1%} {statistics.median(steps):8.2f}", flush=True)
    for name in slow:
        print(f"FAIL  {name} makes iterations more than {LIMIT} times as long")
    print("FAIL" if slow else "PASS")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
