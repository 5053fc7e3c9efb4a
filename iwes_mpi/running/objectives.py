"""The settings of a run that maximizes an objective: those of training that do not speak of an environment."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from iwes_mpi.settings.config import Config
from iwes_mpi.settings.meant import meant
from iwes_mpi.settings.wrong_input import WrongInput

# What an objective's runs have where settings speak of policies, episodes and steps.
FIXED: dict[str, Any] = {"action_noise": 0.0, "obs_stat_probability": 0.0}
DEFAULTS: dict[str, Any] = {"n_eval": 1}  # an objective need not be random: several evaluations would be alike
_OF_EPISODES = {
    "train_episode_steps", "episode_schedule", "episode_growth", "episode_budget", "min_env_steps", "rollouts",
}  # fmt: skip
_GROUPS = {field.name: field.metadata["group"] for field in dataclasses.fields(Config)}
SETTINGS = [
    name for name, group in _GROUPS.items() if group not in ("environment", "policy") and name not in _OF_EPISODES
]
_UPDATING = ("population", "update", "importance weighting")
# Those of someone who owns the loop, and thereby files, limits and evaluations.
OF_UPDATES = [
    *(name for name in SETTINGS if _GROUPS[name] in _UPDATING and name != "weights_on"), "seed", "noise_table_size",
]  # fmt: skip


def refuse_others(settings: Mapping[str, Any], known: list[str], what: str) -> None:
    """Raise WrongInput if a setting is none of `known`, those of `what`."""
    for name in settings:
        if name in known:
            continue
        if name in _GROUPS:
            raise WrongInput(name, f"is not a setting of {what}")
        near = meant(name, known)
        raise WrongInput(name, f"is not a setting of {what}" + (f"; is it {near}?" if near else ""))


def name_of(objective: Any) -> str:
    """What an objective is called in the log and in messages: ``module.function``, or its class."""
    named = objective if hasattr(objective, "__qualname__") else type(objective)
    return f"{named.__module__}.{named.__qualname__}"


def plain(text: str) -> str:
    """A text whose settings, in backquotes, are keyword arguments: without the backquotes."""
    return text.replace("`", "")
