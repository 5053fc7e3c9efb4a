"""Every setting of a run: one frozen, validated dataclass that is also the command line, the TOML and the JSON.

A setting has one name everywhere: the field ``n_pairs`` is the flag ``--n-pairs``, the TOML key ``n_pairs`` and
the JSON key ``n_pairs``. Later sources override earlier ones: defaults, ``--preset``, ``--config FILE``, flags.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn

import tomli_w

from iwes_mpi.seeding import MAX_SEED


class ConfigError(ValueError):
    """Wrong input: a setting and one sentence on what is wrong with it.

    Parameters
    ----------
    setting : str
        As the user wrote it: a flag such as ``--sigma``, a file, an environment.
    problem : str
        What is wrong, with the offending value.
    """

    def __init__(self, setting: str, problem: str):
        super().__init__(f"{setting}: {' '.join(str(problem).split())}")
        self.setting = setting


def flag(name: str) -> str:
    """The command-line flag of the setting `name`: ``n_pairs`` gives ``--n-pairs``."""
    return "--" + name.replace("_", "-")


GROUPS = {
    "environment": "Any Gymnasium environment with a flat Box observation and a Box or Discrete action space.",
    "policy": "A multilayer perceptron with tanh hidden units and a linear output; theta is all its weights.",
    "population": "Each iteration evaluates n-pairs mirrored perturbations theta ± sigma·epsilon, epsilon ~ N(0, I).",
    "update": "theta follows the estimated gradient of the expected utility (the shaped return).",
    "importance weighting": "Up to K further updates reuse the same population, each reweighting its samples by "
    "importance sampling: the method of Campos et al. (2018). K = 0 is plain ES.",
    "evaluation": "Episodes of the unperturbed policy, to see progress; they do not influence theta.",
    "limits": "The run ends at whichever comes first; with none it goes on until it is stopped.",
    "run": "Where the run lives, and how it is carried out. None of these changes theta by a bit, "
    "except the seed and the noise table's size.",
}


def _positive(value: float) -> str | None:
    return None if 0 < value < math.inf else "must be positive and finite"


def _not_negative(value: float) -> str | None:
    return None if 0 <= value < math.inf else "must be zero or more, and finite"


def _at_least_one(value: int) -> str | None:
    return None if 1 <= value <= 2**53 else "must be at least 1"


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def _momentum(value: float) -> str | None:
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


def _positive_or_inf(value: float) -> str | None:
    return None if value > 0 else "must be positive (inf for none)"


def _count(value: int) -> str | None:
    return None if 0 <= value <= 2**53 else "must be zero or more"


def _pairs(value: int) -> str | None:
    return None if 1 <= value <= 2**30 else "must lie between 1 and 2^30"


def _layers(value: tuple[int, ...]) -> str | None:
    return None if all(1 <= units <= 65536 for units in value) else "every layer needs 1 to 65536 units"


def _seed(value: int) -> str | None:
    return None if 0 <= value <= MAX_SEED else "must lie between 0 and 2^64 - 1"


def _not_empty(value: str) -> str | None:
    return None if value.strip() and value.isprintable() else "must not be empty"


def _setting(
    group: str,
    default: Any,
    text: str,
    check: Callable[[Any], str | None] | None = None,
    unit: str = "",
    changes_results: bool = True,
) -> Any:
    """A field of `Config` with what its help, its validation and ``--resume`` need to know of it."""
    metadata = {
        "group": group,
        "help": text,
        "check": check,
        "unit": unit,
        "changes_results": changes_results,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _limit(text: str, check: Callable[[Any], str | None], unit: str) -> Any:
    return _setting("limits", None, text, check, unit, changes_results=False)


def _housekeeping(default: Any, text: str, check: Callable[[Any], str | None] | None = None, unit: str = "") -> Any:
    return _setting("run", default, text, check, unit, changes_results=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run; see ``--help`` or each field's metadata for what they mean.

    The defaults are those of the reference ES code (Salimans et al. 2017) on Ant-v5.

    Raises
    ------
    ConfigError
        If a value is out of its range or of the wrong type.
    """

    env_id: str = _setting("environment", "Ant-v5", "Gymnasium id; module:EnvId imports your module first", _not_empty)
    env_kwargs: dict[str, Any] = _setting("environment", {}, "keyword arguments of the environment, as JSON")
    train_env_kwargs: dict[str, Any] = _setting(
        "environment", {},
        'others for population episodes only, as JSON over --env-kwargs, such as {"healthy_reward": 0}; evaluation '
        "keeps the environment's own",
    )  # fmt: skip
    max_episode_steps: int | None = _setting(
        "environment", None, "time limit of an episode; by default the one the environment is registered with",
        _at_least_one, "steps",
    )  # fmt: skip

    hidden_sizes: tuple[int, ...] = _setting(
        "policy", (64, 64), "units of each hidden layer; none given: a linear policy", _layers, "units"
    )
    action_noise: float = _setting(
        "policy", 0.01, "standard deviation of the Gaussian noise added to actions", _not_negative
    )
    obs_clip: float = _setting(
        "policy",
        5.0,
        "normalised observations are clipped to ± this",
        _positive_or_inf,
        "standard deviations",
    )
    obs_stat_probability: float = _setting(
        "policy",
        0.01,
        "share of population episodes whose observations enter the running mean and deviation",
        _share,
    )

    n_pairs: int = _setting("population", 5000, "mirrored pairs per iteration (two episodes each)", _pairs, "pairs")
    min_env_steps: int = _setting(
        "population", 100_000,
        "evaluate further blocks of n-pairs until an iteration has at least this many environment steps",
        _count, "steps",
    )  # fmt: skip
    sigma: float = _setting("population", 0.02, "standard deviation of the parameter perturbations", _positive)
    common_random_numbers: bool = _setting(
        "population", False, "both members of a pair meet the same start state and action noise"
    )
    shaping: Literal["centered-rank", "none", "standardize"] = _setting(
        "population", "centered-rank",
        "returns to utilities: ranks in [-0.5, 0.5], the returns themselves, or mean 0 and deviation 1",
    )  # fmt: skip

    optimizer: Literal["adam", "sgd"] = _setting(
        "update", "adam", "Adam (0.9, 0.999, 1e-8), or gradient steps with momentum"
    )
    learning_rate: float = _setting("update", 0.01, "step size of the optimiser", _positive)
    momentum: float = _setting("update", 0.9, "momentum of sgd (adam does not use it)", _momentum)
    l2: float = _setting("update", 0.005, "weight decay: l2·theta is added to the descent direction", _not_negative)

    iw_updates: int = _setting(
        "importance weighting", 0, "K: further updates from one population (0 is plain ES)", _count, "updates"
    )
    clip: float = _setting(
        "importance weighting", 1.0, "importance weights are clipped from above at this; inf for no clipping",
        _positive_or_inf,
    )  # fmt: skip
    center: bool = _setting(
        "importance weighting", False,
        "subtract the weighted mean utility, which removes the pull along the distance already moved",
    )  # fmt: skip
    min_ess: float = _setting(
        "importance weighting", 0.0,
        "make no further update once the effective sample size is below this share of the population (0: no rule)",
        _share,
    )  # fmt: skip
    max_kl: float = _setting(
        "importance weighting", math.inf,
        "make no further update once theta is farther than this KL divergence from the population's centre",
        _positive_or_inf, "nats",
    )  # fmt: skip
    weight_kernel: Literal["cancelled", "density-ratio", "precomputed"] = _setting(
        "importance weighting", "cancelled",
        "how a weight is computed: one dot product per pair; the literal ratio of densities (eq. 4); or eq. 4 with "
        "precomputed denominators (section 3.2). They agree to rounding; the first is the fastest",
    )  # fmt: skip
    weights_on: Literal["all", "node", "root"] = _setting(
        "importance weighting", "all",
        "which ranks compute weights and gradient: all, those of rank 0's node (as the paper), or rank 0 alone. "
        "The same bits in all three",
        changes_results=False,
    )  # fmt: skip

    n_eval: int = _setting("evaluation", 30, "evaluation episodes per iteration", _count, "episodes")

    iterations: int | None = _limit("iterations in all, over restarts", _count, "iterations")
    max_env_steps: int | None = _limit("environment steps of population episodes in all", _at_least_one, "steps")
    max_wall_time: float | None = _limit(
        "wall-clock time of this job; then a checkpoint is written and the exit code is 75", _positive, "s"
    )

    seed: int = _setting("run", 0, "everything random is drawn from it", _seed)
    noise_table_size: int | None = _setting(
        "run", None,
        "random numbers in the noise table, one table per node, 4 bytes each (default: 250 million, or fewer "
        "where the node's shared memory is too small)",
        _at_least_one, "numbers",
    )  # fmt: skip
    schedule: Literal["dynamic", "static"] = _housekeeping(
        "dynamic",
        "who runs which episode: the ranks of a node take the next one when they are free, or each has a fixed share",
    )
    run_dir: str | None = _housekeeping(None, "directory of the run (default: runs/ENV-seedS-DATE-TIME)", _not_empty)
    checkpoint_every: int = _housekeeping(
        0, "write a checkpoint every so many iterations (0: by time only)", _count, "iterations"
    )
    checkpoint_minutes: float = _housekeeping(
        5.0, "write a checkpoint at least this often; one is also written at the end", _positive, "min"
    )
    keep_checkpoints: int = _housekeeping(
        0, "keep a trail of so many of the checkpoints written, spread over the whole run, in RUN/checkpoints",
        _count, "checkpoints",
    )  # fmt: skip
    rollouts: Literal["auto", "native", "gymnasium"] = _housekeeping(
        "auto",
        "what runs episodes: compiled calls straight into MuJoCo, or any environment through Gymnasium; auto: "
        "native for Gymnasium's own MuJoCo tasks. The same bits in both",
    )
    log_population: bool = _housekeeping(False, "log every episode's return and length as well")
    tensorboard: bool = _housekeeping(False, "write scalars for TensorBoard as well, under RUN/tensorboard")
    display: Literal["auto", "bar", "lines", "none"] = _housekeeping(
        "auto",
        "progress: a live bar, one line per iteration, or nothing; auto: a bar on a terminal, else lines",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _coerce(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check = field.metadata["check"]
            if value is not None and check and (problem := check(value)):
                raise ConfigError(flag(field.name), f"{problem}, got {_text(value)}")

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, in values that JSON and TOML can hold (``inf`` becomes the string "inf")."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        """All settings, defaults included, as JSON."""
        return json.dumps(self.as_dict())

    def to_toml(self) -> str:
        """All settings, defaults included, as TOML grouped like ``--help``; settings that are unset are left out."""
        lines = []
        for group in GROUPS:
            chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["group"] == group}
            lines.append(f"# {group}\n" + tomli_w.dumps({k: _toml(v) for k, v in chosen.items() if v is not None}))
        return "\n".join(lines)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str = "configuration") -> "Config":
        """Settings by name; unknown ones are refused.

        Raises
        ------
        ConfigError
            Naming `source` and the setting.
        """
        _refuse_unknown(settings, source)
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(source, str(error)) from None

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The inverse of `to_json`."""
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ConfigError("configuration", "is not a JSON object")
        return cls.from_dict(settings)

    def differences(self, other: "Config") -> list[str]:
        """Names of the settings that change results and differ between the two configurations."""
        return [
            f.name
            for f in dataclasses.fields(self)
            if f.metadata["changes_results"] and getattr(self, f.name) != getattr(other, f.name)
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _toml(value: Any) -> Any:
    """A value for a flat TOML file: JSON text for a dictionary, which may also hold null, unknown to TOML."""
    if isinstance(value, dict):
        return json.dumps(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return json.dumps(_plain(value)) if isinstance(value, dict | tuple) else str(value)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or a ConfigError that says what was expected."""
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else _coerce(name, choices[0], value)
    if typing.get_origin(hint) is Literal:
        if value in choices and isinstance(value, str):
            return value
        raise ConfigError(flag(name), f"must be one of {', '.join(choices)}, got {value!r}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(flag(name), f"must be true or false, got {value!r}")
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ConfigError(flag(name), f"must be a whole number, got {value!r}")
    if hint is float:
        if isinstance(value, str) and value in ("inf", "Infinity"):
            value = math.inf
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
        raise ConfigError(flag(name), f"must be a number, got {value!r}")
    if hint is str:
        if isinstance(value, str):
            return value
        raise ConfigError(flag(name), f"must be text, got {value!r}")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_coerce(name, choices[0], item) for item in value)
        raise ConfigError(flag(name), f"must be a list of whole numbers, got {value!r}")
    if isinstance(value, str):  # a dictionary, written as JSON
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(flag(name), f"is not valid JSON ({error}): {value[:60]}") from None
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ConfigError(flag(name), f'must be a JSON object such as {{"key": 1}}, got {value!r}')


def _refuse_unknown(settings: Mapping[str, Any], source: str) -> None:
    known = [f.name for f in dataclasses.fields(Config)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(source, f"unknown setting {name}" + (f" (did you mean {near[0]}?)" if near else ""))


def preset_names() -> list[str]:
    """The names ``--preset`` takes."""
    files = resources.files("iwes_mpi.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by name.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError("--preset", f"there is no preset {name!r}; there are {', '.join(preset_names())}")
    return tomllib.loads((resources.files("iwes_mpi.presets") / f"{name}.toml").read_text("utf-8"))


def load_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, by name; dashes in names count as underscores.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or names an unknown setting.
    """
    source = f"--config {path}"
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(source, f"cannot be read: {problem}") from None
    try:
        settings = {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(source, f"is not valid TOML: {error}") from None
    _refuse_unknown(settings, source)
    return settings


@dataclass(frozen=True)
class Request:
    """What a command line asks for: the settings it names (by source) and how to begin."""

    settings: dict[str, Any]  # by name, in order of precedence already merged
    resume: Literal["never", "always", "auto"]

    def config(self, recorded: Config | None = None) -> Config:
        """The run's configuration: what was asked for, over `recorded` (a run being resumed) or the defaults."""
        base = {} if recorded is None else {f.name: getattr(recorded, f.name) for f in dataclasses.fields(recorded)}
        return Config(**(base | self.settings))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps names such as paper-ant-512 in one piece."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, naming the setting."""
        setting, separator, problem = message.removeprefix("argument ").partition(": ")
        if message.startswith("argument ") and separator:
            raise ConfigError(setting, problem)
        if message.startswith("unrecognized arguments: "):
            flag = message.split()[2]
            near = difflib.get_close_matches(flag.partition("=")[0], self._option_string_actions, 1)
            raise ConfigError(
                flag, f"is not a setting of this program; {f'is it {near[0]}?' if near else 'see --help'}"
            )
        raise ConfigError("command line", message)


def _from_text(name: str, hint: Any) -> Callable[[str], Any]:
    """A function that reads a setting's value from the text of a flag."""

    def read(text: str) -> Any:
        target = hint
        if isinstance(hint, types.UnionType):
            if text == "none":
                return None
            target = typing.get_args(hint)[0]
        if typing.get_origin(target) is tuple:
            target = typing.get_args(target)[0]
        value: Any = text
        if target in (int, float):
            with contextlib.suppress(ValueError):
                value = int(text) if target is int and "e" not in text.lower() else float(text)
        try:
            return _coerce(name, target, value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None

    return read


def _metavar(hint: Any) -> str | None:
    names = {int: "N", float: "X", str: "TEXT"}
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        return None
    return "N" if typing.get_origin(hint) is tuple else names.get(hint, "JSON")


def _help(field: dataclasses.Field[Any]) -> str:
    default = {} if field.default is dataclasses.MISSING else field.default
    parts = [field.metadata["unit"]] if field.metadata["unit"] else []
    if "(default" not in field.metadata["help"]:
        shown = "none" if default is None or default == {} else default
        shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else shown
        shown = {True: "on", False: "off"}.get(shown, shown) if isinstance(shown, bool) else shown
        parts.append(f"default {shown}")
    return (field.metadata["help"] + (f" [{'; '.join(parts)}]" if parts else "")).replace("%", "%%")


_DESCRIPTION = """\
Train a policy with Importance Weighted Evolution Strategies (IW-ES) under MPI.

Each iteration perturbs the policy's parameters theta with Gaussian noise of deviation sigma, runs one episode
per perturbed policy on all ranks, and moves theta towards the perturbations that did well. Plain ES then throws
these episodes away. IW-ES makes up to K more updates from them: since theta has moved, each sample is weighted by
the ratio of its density under the new and the old search distribution. The effective sample size (ESS) says how
much of the population still counts."""

_EPILOG = """\
exit codes:
  0   finished: a limit was reached
  2   wrong input; nothing was run
  74  the run directory could not be written (disk full, quota): continue with --resume once it can
  75  stopped early (a signal, or --max-wall-time) with a checkpoint: continue with --resume
  any other: a failure

examples:
  mpirun -n 2 python -m iwes_mpi.train --preset quickstart
  mpirun -n 720 python -m iwes_mpi.train --preset paper-ant --seed 3 --run-dir runs/ant-3
  mpirun -n 96 python -m iwes_mpi.train --resume --run-dir runs/ant-3 --iterations 500"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python -m iwes_mpi.train``, made from the fields of `Config`."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.train",
        usage="mpirun -n RANKS python -m iwes_mpi.train [--preset NAME] [--config FILE] [settings]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    start = parser.add_argument_group("where settings come from", "Later ones override earlier ones.")
    start.add_argument("--preset", metavar="NAME", help=f"named settings: {', '.join(preset_names())}")
    start.add_argument("--config", metavar="FILE", help="settings from a TOML file, such as a run's config.toml")
    hints = typing.get_type_hints(Config)
    for name, description in GROUPS.items():
        group = parser.add_argument_group(name, textwrap.fill(description, 100))
        for field in dataclasses.fields(Config):
            if field.metadata["group"] != name:
                continue
            hint = hints[field.name]
            options: dict[str, Any] = {"help": _help(field)}
            if hint is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options |= {"type": _from_text(field.name, hint), "metavar": _metavar(hint)}
                if typing.get_origin(hint) is Literal:
                    options |= {"choices": typing.get_args(hint), "type": str}
                if typing.get_origin(hint) is tuple:
                    options["nargs"] = "*"
            group.add_argument(flag(field.name), **options)
        if name == "run":
            group.add_argument(
                "--resume",
                nargs="?",
                const="always",
                choices=("always", "auto"),
                help="continue the run in --run-dir with its recorded settings, on any number of ranks; "
                "'auto' starts a new one if there is none",
            )
    return parser


def parse(argv: Sequence[str]) -> Request:
    """What a command line asks for, with preset and file read and merged.

    Raises
    ------
    ConfigError
        For anything wrong in it, naming the setting.
    SystemExit
        After printing the help, if that is what it asks for.
    """
    given = vars(build_parser().parse_args(list(argv)))
    resume = given.pop("resume", "never")
    settings: dict[str, Any] = {}
    if (preset := given.pop("preset", None)) is not None:
        settings |= load_preset(preset)
    if (path := given.pop("config", None)) is not None:
        settings |= load_toml(path)
        Config.from_dict(settings, f"--config {path}")
    request = Request(settings | given, resume)
    request.config()
    if resume != "never" and request.settings.get("run_dir") is None:
        raise ConfigError("--resume", "needs --run-dir, the directory of the run to continue")
    return request
