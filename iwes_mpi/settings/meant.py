"""Which name was meant by one that is unknown."""

import difflib
from collections.abc import Iterable

# What other programs call our settings, where the names are not alike
KNOWN_AS = {
    "lr": "learning_rate", "alpha": "learning_rate", "step_size": "learning_rate",
    "env": "env_id", "task": "env_id", "population": "n_pairs", "population_size": "n_pairs", "popsize": "n_pairs",
    "noise_std": "sigma", "std": "sigma", "steps": "max_env_steps", "timesteps": "max_env_steps",
    "total_timesteps": "max_env_steps", "generations": "iterations", "epochs": "iterations",
    "output": "run_dir", "out": "run_dir", "log_dir": "run_dir", "weight_decay": "l2",
    "hidden": "hidden_sizes", "layers": "hidden_sizes", "k": "iw_updates",
    "eval_episodes": "n_eval", "time_limit": "max_wall_time",
}  # fmt: skip


def meant(unknown: str, known: Iterable[str]) -> str:
    """The known name that an unknown one may stand for: what others call it, or one spelled much alike; else empty."""
    names = list(known)
    other = KNOWN_AS.get(unknown, "")
    return other if other in names else next(iter(difflib.get_close_matches(unknown, names, 1)), "")
