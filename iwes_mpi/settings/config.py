"""Every setting of a run: one frozen, validated dataclass.

A setting has one name everywhere: the field ``n_pairs`` is the key ``n_pairs`` in TOML and JSON and, on the command
line, the flag made from it. To add a setting, add a field: help, validation, files and ``--resume`` follow from it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tomli_w

from iwes_mpi.settings import values
from iwes_mpi.settings.meant import meant
from iwes_mpi.settings.registry import EPISODE_SCHEDULES, OPTIMIZERS, SCHEDULES, SHAPINGS, WEIGHT_KERNELS, Registry
from iwes_mpi.settings.wrong_input import WrongInput

GROUPS = {
    "environment": "Any Gymnasium environment with a flat Box observation and a Box or Discrete action space.",
    "policy": "A multilayer perceptron with a linear output; theta is all its weights.",
    "population": "Each iteration evaluates n-pairs mirrored perturbations theta ± sigma·epsilon, epsilon ~ N(0, I).",
    "update": "theta follows the estimated gradient of the expected utility (the shaped return).",
    "importance weighting": "Up to K further updates reuse the same population, each reweighting its samples by "
    "importance sampling: the method of Campos et al. (2018). K = 0 is plain ES.",
    "evaluation": "Episodes of the unperturbed policy, to see progress; they do not influence theta.",
    "limits": "The run ends at whichever comes first; with none it goes on until it is stopped. The value none lifts a "
    "limit, as in --resume --max-env-steps none.",
    "run": "Where the run lives, and how it is carried out. None of these changes theta by a bit, "
    "except the seed and the noise table's size.",
}


_SAME = object()


def _setting(
    group: str,
    default: Any,
    text: str,
    check: Callable[[Any], str | None] | None = None,
    unit: str = "",
    changes_results: bool = True,
    choices: Registry | None = None,
    before: Any = _SAME,
) -> Any:
    """A field of `Config` with what its help, its validation and ``--resume`` need to know of it.

    `before` is its value in the records of runs made before there was such a setting, if it is not the default.
    """
    metadata = {
        "group": group,
        "help": text,
        "check": check,
        "unit": unit,
        "changes_results": changes_results,
        "choices": choices,
        "before": before,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _choice(group: str, default: str, choices: Registry, text: str) -> Any:
    """A setting whose values are the modules of a folder."""
    return _setting(group, default, text, choices=choices)


def _limit(text: str, check: Callable[[Any], str | None], unit: str) -> Any:
    return _setting("limits", None, text, check, unit, changes_results=False)


def _housekeeping(default: Any, text: str, check: Callable[[Any], str | None] | None = None, unit: str = "") -> Any:
    return _setting("run", default, text, check, unit, changes_results=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run; see ``--help`` or each field's metadata for what they mean.

    The defaults let a small task learn on a laptop. Those of the reference ES code (Salimans et al. 2017) are the
    preset ``reference-es``, those of Campos et al. (2018) the presets ``paper-…``.

    Raises
    ------
    WrongInput
        If a value is out of its range or of the wrong type.
    """

    env_id: str = _setting(
        "environment", "Ant-v5", "Gymnasium id; module:EnvId imports your module first", values.not_empty
    )
    env_kwargs: dict[str, Any] = _setting("environment", {}, "keyword arguments of the environment, as JSON")
    train_env_kwargs: dict[str, Any] = _setting(
        "environment", {},
        'others for population episodes only, as JSON over `env_kwargs`, such as {"healthy_reward": 0}; evaluation '
        "keeps the environment's own",
    )  # fmt: skip
    max_episode_steps: int | None = _setting(
        "environment", None, "time limit of an episode; by default the one the environment is registered with",
        values.at_least_one, "steps",
    )  # fmt: skip

    hidden_sizes: tuple[int, ...] = _setting(
        "policy", (), "units of each hidden layer; none given: a linear policy", values.layers, "units"
    )
    bias: bool = _setting("policy", True, "units have biases; without, a linear policy is a matrix")
    activation: Literal["tanh", "relu"] = _setting("policy", "tanh", "what hidden units do with their input")
    action_noise: float = _setting(
        "policy", 0.01, "standard deviation of the Gaussian noise added to actions", values.not_negative
    )
    obs_clip: float = _setting(
        "policy",
        5.0,
        "normalized observations are clipped to ± this",
        values.positive_or_inf,
        "standard deviations",
    )
    obs_stat_probability: float = _setting(
        "policy",
        1.0,
        "share of population episodes whose observations enter the running mean and deviation",
        values.share,
    )
    whiten: bool = _setting(
        "policy", False,
        "rid observations of their correlations as well, not only of mean and deviation, so that every direction of "
        "them counts alike; takes time and memory that grow with the square of their number",
    )  # fmt: skip

    train_episode_steps: int | None = _setting(
        "population", None,
        "cut population episodes after so many steps; evaluation episodes are always whole (default: whole too)",
        values.at_least_one, "steps",
    )  # fmt: skip
    episode_schedule: str = _choice(
        "population", "constant", EPISODE_SCHEDULES, "how the cut of `train_episode_steps` moves during the run"
    )
    episode_growth: float = _setting(
        "population", 1.5, "factor by which an episode schedule lengthens episodes", values.above_one
    )
    episode_budget: int = _setting(
        "population", 1_000_000, "steps after which the schedule `budget` has episodes whole", values.at_least_one,
        "steps",
    )  # fmt: skip
    n_pairs: int = _setting("population", 10, "mirrored pairs per iteration (two episodes each)", values.pairs, "pairs")
    min_env_steps: int = _setting(
        "population", 0,
        "evaluate further blocks of `n_pairs` until an iteration has at least this many environment steps",
        values.count, "steps",
    )  # fmt: skip
    sigma: float = _setting("population", 0.1, "standard deviation of the parameter perturbations", values.positive)
    sigma_schedule: str = _choice(
        "population", "constant", SCHEDULES, "how sigma comes down to `sigma_end` during `schedule_iterations`"
    )
    sigma_end: float = _setting(
        "population", 0.1, "sigma at the end of its schedule, as a share of the first", values.positive
    )
    common_random_numbers: bool = _setting(
        "population", False, "both members of a pair meet the same start state and action noise"
    )
    shaping: str = _choice("population", "centered-rank", SHAPINGS, "how returns become utilities")
    top_share: float = _setting(
        "population", 0.5, "share of the pairs that count with the shaping `top-directions`: those of the best returns",
        values.share_above_zero,
    )  # fmt: skip

    optimizer: str = _choice("update", "adam", OPTIMIZERS, "how theta follows the gradient")
    learning_rate: float | None = _setting(
        "update", None, "step size of the optimizer (default: what gives steps of `step_in_sigma`)", values.positive
    )
    step_in_sigma: float = _setting(
        "update", 1.0,
        "length of a first step, which sets the learning rate whatever the policy's size: Adam's is learning_rate·√d",
        values.positive, "sigma",
    )  # fmt: skip
    learning_rate_schedule: str = _choice(
        "update", "constant", SCHEDULES,
        "how the learning rate comes down to `learning_rate_end` during `schedule_iterations`",
    )  # fmt: skip
    learning_rate_end: float = _setting(
        "update", 0.1, "learning rate at the end of its schedule, as a share of the first", values.positive
    )
    schedule_iterations: int = _setting(
        "update", 1000, "iterations that the schedules of sigma and of the learning rate take", values.at_least_one,
        "iterations",
    )  # fmt: skip
    momentum: float = _setting("update", 0.9, "share of the past steps in the next (Adam's beta1)", values.below_one)
    l2: float = _setting("update", 0.0, "weight decay: l2·theta is added to the descent direction", values.not_negative)

    iw_updates: int = _setting(
        "importance weighting",
        8,
        "K: at most so many further updates from one population (0 is plain ES)",
        values.count,
        "updates",
    )
    cross_fit: bool = _setting(
        "importance weighting", False,
        "updates take turns with two halves of the population, so that each weighs noise that the one before did not "
        "follow",
    )  # fmt: skip
    reuse_batches: int = _setting(
        "importance weighting", 1, "populations that count, by the balance heuristic: the newest and those before it",
        values.at_least_one, "populations",
    )  # fmt: skip
    importance_mixing: float | None = _setting(
        "importance weighting", None,
        "importance mixing: an iteration keeps those samples of the one before that fit where theta is now, and runs "
        "episodes only for new ones in place of the others; at least this share is replaced, on average (default: off)",
        values.share_above_zero,
    )  # fmt: skip
    weigh_pairs: bool = _setting(
        "importance weighting", False, "both members of a pair get the mean of their two weights"
    )
    repeat_gradient: bool = _setting(
        "importance weighting", False, "a control: the K further updates repeat the first gradient, without weights"
    )
    clip: float = _setting(
        "importance weighting", 1.0, "importance weights are clipped from above at this; inf for no clipping",
        values.positive_or_inf,
    )  # fmt: skip
    center: bool = _setting(
        "importance weighting", False,
        "subtract the weighted mean utility, which removes the pull along the distance already moved",
    )  # fmt: skip
    min_ess: float = _setting(
        "importance weighting", 0.5,
        "make no further update once the effective sample size is below this share of the population (0: no rule)",
        values.share,
    )  # fmt: skip
    max_kl: float = _setting(
        "importance weighting", math.inf,
        "trust region: a step that leads farther than this KL divergence from the population's center ends on its "
        "edge, and is the last",
        values.positive_or_inf, "nats",
    )  # fmt: skip
    max_step: float = _setting(
        "importance weighting", math.inf, "steps are shortened to at most this many sigmas", values.positive_or_inf,
        "sigma",
    )  # fmt: skip
    weight_kernel: str = _choice(
        "importance weighting", "cancelled", WEIGHT_KERNELS,
        "how a weight is computed; all agree to rounding, cancelled is the fastest",
    )  # fmt: skip
    weights_on: Literal["all", "node", "root"] = _setting(
        "importance weighting", "all",
        "which ranks compute weights and gradient: all, those of rank 0's node (as the paper), or rank 0 alone. "
        "The same bits in all three",
        changes_results=False,
    )  # fmt: skip

    n_eval: int = _setting("evaluation", 5, "episodes of an evaluation", values.count, "episodes")
    eval_every: int = _setting(
        "evaluation", 0,
        "iterations from one evaluation to the next (0: as often as a tenth of all environment steps allows)",
        values.count, "iterations", before=1,
    )  # fmt: skip

    iterations: int | None = _limit("iterations in all, over restarts", values.count, "iterations")
    max_env_steps: int | None = _limit("environment steps of population episodes in all", values.at_least_one, "steps")
    stop_at_return: float | None = _limit(
        "mean return of three evaluations in a row at which the run has reached its goal", values.finite, "return"
    )
    max_wall_time: float | None = _limit(
        "wall-clock time of this job; then a checkpoint is written and the exit code is 75", values.positive, "s"
    )

    seed: int = _setting("run", 0, "everything random is drawn from it", values.seed)
    noise_table_size: int | None = _setting(
        "run", None,
        "random numbers in the noise table, one table per node, 4 bytes each (default: 25,000 per parameter, from 10 "
        "to 250 million, or fewer where the node's shared memory is too small)",
        values.at_least_one, "numbers",
    )  # fmt: skip
    schedule: Literal["dynamic", "static"] = _housekeeping(
        "dynamic",
        "who runs which episode: the ranks of a node take the next one when they are free, and nodes share the last "
        "quarter, or each rank has a fixed share",
    )
    run_dir: str | None = _housekeeping(
        None, "directory of the run (default: runs/ENV-seedS-DATE-TIME)", values.not_empty
    )
    checkpoint_every: int = _housekeeping(
        0,
        "write a checkpoint every so many iterations (0: after each one, as long as that costs less than 1 % of the "
        "time)",
        values.count, "iterations",
    )  # fmt: skip
    checkpoint_minutes: float = _housekeeping(
        5.0, "write a checkpoint at least this often; one is also written at the end", values.positive, "min"
    )
    keep_checkpoints: int = _housekeeping(
        0, "keep a trail of so many of the checkpoints written, spread over the whole run, in RUN/checkpoints",
        values.count, "checkpoints",
    )  # fmt: skip
    rollouts: Literal["auto", "native", "gymnasium"] = _housekeeping(
        "auto",
        "what runs episodes: compiled calls straight into MuJoCo, or any environment through Gymnasium; auto: "
        "native for Gymnasium's own MuJoCo tasks. The same bits in both",
    )
    log_population: bool = _housekeeping(False, "log every episode's return and length as well")
    tensorboard: bool = _housekeeping(False, "write scalars for TensorBoard as well, under RUN/tensorboard")
    on_iteration: str | None = _housekeeping(
        None,
        "module:function of your own that rank 0 calls after each iteration with the log's row; the working directory "
        "is searched too",
        values.not_empty,
    )
    display: Literal["auto", "bar", "lines", "none"] = _housekeeping(
        "auto",
        "progress: a live bar, one line per iteration, or nothing; auto: a bar on a terminal, else lines",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = values.coerce(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            choices = field.metadata["choices"]
            if choices is not None and value not in choices.names:
                raise WrongInput(field.name, f"must be one of {', '.join(choices.names)}, got {value!r}")
            check = field.metadata["check"]
            if value is not None and check and (problem := check(value)):
                raise WrongInput(field.name, f"{problem}, got {values.text(value)}")

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, in values that JSON and TOML can hold (``inf`` becomes the string "inf")."""
        return {f.name: values.plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        """All settings, defaults included, as JSON."""
        return json.dumps(self.as_dict())

    def to_toml(self) -> str:
        """All settings, defaults included, as TOML grouped like ``--help``; settings that are unset are left out."""
        lines = []
        for group in GROUPS:
            chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["group"] == group}
            lines.append(
                f"# {group}\n" + tomli_w.dumps({k: values.for_toml(v) for k, v in chosen.items() if v is not None})
            )
        return "\n".join(lines)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str = "configuration") -> "Config":
        """Settings by name; unknown ones are refused.

        Raises
        ------
        WrongInput
            Naming `source` and the setting.
        """
        refuse_unknown(settings, source)
        try:
            return cls(**settings)
        except WrongInput as error:
            raise WrongInput(error.setting, error.problem, source) from None

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The settings that a run has recorded with `to_json`, also one made before there were some of them.

        Raises
        ------
        ValueError
            If that is not JSON; as WrongInput, if it is not a configuration.
        """
        if not isinstance(text, str):
            raise WrongInput("configuration", "is not text")
        try:
            settings = json.loads(text)
        except RecursionError:
            raise WrongInput("configuration", "is nested too deeply") from None
        if not isinstance(settings, dict):
            raise WrongInput("configuration", "is not a JSON object")
        return cls.recorded(settings)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any], source: str = "configuration") -> "Config":
        """As `from_dict`, of a run that may be older than some settings: these had no choice then."""
        before = {f.name: f.metadata["before"] for f in dataclasses.fields(cls) if f.metadata["before"] is not _SAME}
        return cls.from_dict(before | dict(settings), source)

    def differences(self, other: "Config") -> list[str]:
        """Names of the settings that change results and differ between the two configurations."""
        return [
            f.name
            for f in dataclasses.fields(self)
            if f.metadata["changes_results"] and getattr(self, f.name) != getattr(other, f.name)
        ]


def check_together(config: Config) -> None:
    """Raise WrongInput if two settings, each right by itself, cannot be combined."""
    if config.importance_mixing is None:
        return
    wrong = {  # each counts on whole pairs, or on populations of their own size
        "reuse_batches": config.reuse_batches > 1,
        "min_env_steps": config.min_env_steps > 0,
        "cross_fit": config.cross_fit,
        "weigh_pairs": config.weigh_pairs,
        "shaping": config.shaping == "top-directions",
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        value = getattr(config, name)
        shown = "" if value is True else f" {values.text(value)}"
        raise WrongInput("importance_mixing", f"cannot be combined with `{name}`{shown}")


def refuse_unknown(settings: Mapping[str, Any], source: str) -> None:
    """Raise WrongInput if a name is no setting's."""
    known = [f.name for f in dataclasses.fields(Config)]
    for name in settings:
        if name not in known:
            near = meant(name, known)
            raise WrongInput(source, f"unknown setting {name}" + (f" (did you mean {near}?)" if near else ""))
