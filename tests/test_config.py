"""Settings: one name everywhere, from every source to every form and back, and refused in one line when wrong."""

import contextlib
import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from pathlib import Path

import numpy as np
import pytest

from iwes_mpi.settings.command_line import build_parser, flag, parse
from iwes_mpi.settings.config import Config, check_together
from iwes_mpi.settings.sources import load_preset, load_toml, preset_names
from iwes_mpi.settings.wrong_input import WrongInput

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
HINTS = typing.get_type_hints(Config)
TEXTS = ["Ant-v5", "my_module:Env-v0", "runs/ä ö/ü", 'quotes " and \\ back', "a=b", "123", "none-v0", "[x]", "# no"]


def choices(name):
    """The values that a setting may have, if they are a few names; else none."""
    registry, hint = FIELDS[name].metadata["choices"], HINTS[name]
    if registry is not None:
        return registry.names
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def random_value(name, rng):
    """A valid value of a setting, of any kind its type and its check allow."""
    field, hint = FIELDS[name], HINTS[name]
    optional = isinstance(hint, types.UnionType)
    if optional:
        if rng.random() < 0.3:
            return None
        hint = typing.get_args(hint)[0]
    if names := choices(name):
        return str(rng.choice(names))
    if hint is bool:
        return bool(rng.integers(2))
    if hint is str:
        return TEXTS[rng.integers(len(TEXTS))]
    if typing.get_origin(hint) is tuple:
        return tuple(int(x) for x in rng.integers(1, 500, size=rng.integers(0, 5)))
    if hint is int:
        candidates = [0, 1, 7, 2**31, 2**53 - 1, 2**63, 2**64 - 1, int(rng.integers(1, 10**9))]
    elif hint is float:
        candidates = [0.0, 0.25, 1.0, 1e-300, 1 / 3, 1e22, math.inf, float(rng.random()), 10 ** rng.uniform(-12, 6)]
    else:
        return [{}, {"a": 1}, {"b": {"c": [1, 2.5, "x", True]}}, {"d": None, "e ": "ü"}, {"f": 1e-5}][rng.integers(5)]
    valid = [x for x in candidates if field.metadata["check"] is None or field.metadata["check"](x) is None]
    return valid[rng.integers(len(valid))]


def random_config(seed, share=0.5):
    """Settings of which each has a random value, and which go together."""
    rng = np.random.default_rng(seed)
    while True:
        config = Config(**{name: random_value(name, rng) for name in FIELDS if rng.random() < share})
        with contextlib.suppress(WrongInput):
            check_together(config)
            return config


def command_line(config, names=FIELDS):
    """The flags that ask for the settings of a configuration."""
    argv = []
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool):
            argv.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, tuple):
            argv += [flag(name), *map(str, value)]
        else:
            text = "none" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)
            argv.append(f"{flag(name)}={text}")
    return argv


def all_configs():
    yield "defaults", Config()
    for preset in preset_names():
        yield preset, parse(["--preset", preset]).config()
    for seed in range(150):
        yield str(seed), random_config(seed)


# -- round trips ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_round_trips(tmp_path):
    """JSON, TOML text, a TOML file and the command line give back the same settings, of the same types."""
    for name, config in all_configs():
        text = config.to_json()
        assert Config.from_json(text) == config, name
        assert "Infinity" not in text
        assert "NaN" not in text
        assert Config.from_dict(tomllib.loads(config.to_toml())) == config, name
        assert Config.recorded(tomllib.loads(config.to_toml())) == config, "a run must find its own settings on resume"
        file = tmp_path / "settings.toml"
        file.write_text(config.to_toml(), "utf-8")
        assert parse(["--config", str(file)]).config() == config, name
        again = parse(command_line(config)).config()
        assert again == config, name
        for field in FIELDS:
            assert type(getattr(again, field)) is type(getattr(config, field)), (name, field)


def test_every_setting_is_in_every_form():
    config = random_config(1, share=1.0)
    assert set(json.loads(config.to_json())) == set(FIELDS)
    unset = {name for name in FIELDS if getattr(config, name) is None}
    assert set(tomllib.loads(config.to_toml())) == set(FIELDS) - unset
    assert set(tomllib.loads(Config().to_toml())) == {n for n in FIELDS if getattr(Config(), n) is not None}


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().sigma = 1.0


def test_numbers_are_of_their_type():
    config = Config(sigma=1, n_pairs=7.0, hidden_sizes=[3, 4], max_kl="inf")
    assert (type(config.sigma), type(config.n_pairs), config.hidden_sizes) == (float, int, (3, 4))
    assert config.max_kl == math.inf
    assert parse(["--n-pairs", "1e3"]).config().n_pairs == 1000


# -- precedence ----------------------------------------------------------------------------------------------


def test_precedence(tmp_path):
    """Defaults < preset < file < flags, setting by setting, in whatever order they are given."""
    preset = load_preset("paper-ant")
    assert {"n_pairs", "sigma", "learning_rate"} <= set(preset)
    file = tmp_path / "mine.toml"
    file.write_text("sigma = 0.5\nlearning-rate = 0.25\nl2 = 0.125\n")
    config = parse(["--learning-rate", "0.75", "--config", str(file), "--preset", "paper-ant"]).config()
    assert config.learning_rate == 0.75  # flag, over file, preset and default
    assert config.sigma == 0.5  # file, over preset and default
    assert config.l2 == 0.125  # file, over default
    assert config.n_pairs == preset["n_pairs"] != Config().n_pairs  # preset, over default
    assert config.momentum == Config().momentum


def test_flags_override_presets_in_every_setting():
    config = random_config(3, share=1.0)
    assert parse(["--preset", "paper-ant", *command_line(config)]).config() == config


def test_flags_can_undo_what_a_preset_sets():
    argv = ["--preset", "quickstart", "--max-env-steps", "none", "--hidden-sizes"]
    config = parse(argv).config()
    assert config.max_env_steps is None
    assert config.hidden_sizes == ()


def test_a_resumed_run_takes_its_recorded_settings():
    recorded = random_config(5)
    assert parse([]).config(recorded) == recorded
    assert parse(["--iterations", "3"]).config(recorded) == dataclasses.replace(recorded, iterations=3)


def test_a_saved_configuration_can_be_given_back(tmp_path):
    config = parse(["--preset", "quickstart", "--seed", "9"]).config()
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert parse(["--config", str(tmp_path / "config.toml")]).config() == config


# -- presets and defaults ------------------------------------------------------------------------------------

# What is on by default, and off where the paper and the reference code have nothing of the kind; what they share.
AS_PUBLISHED = {
    "min_ess": 0.0, "max_kl": math.inf, "max_step": math.inf, "eval_every": 1, "n_eval": 30, "l2": 0.005,
    "optimizer": "adam", "shaping": "centered-rank", "obs_stat_probability": 0.01, "train_episode_steps": None,
    "episode_schedule": "constant", "reuse_batches": 1, "cross_fit": False, "weigh_pairs": False, "center": False,
    "importance_mixing": None, "repeat_gradient": False, "common_random_numbers": False, "whiten": False, "clip": 1.0,
    "sigma": 0.02, "sigma_schedule": "constant", "learning_rate_schedule": "constant", "momentum": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("preset", ["paper-ant", "paper-ant-256", "paper-ant-512", "paper-humanoid", "reference-es"])
def test_published_methods_have_none_of_our_options(preset):
    c = parse(["--preset", preset]).config()
    assert {name: getattr(c, name) for name in AS_PUBLISHED} == AS_PUBLISHED


def test_the_preset_of_the_reference_es():
    c = parse(["--preset", "reference-es"]).config()
    assert (c.sigma, c.learning_rate, c.l2, c.optimizer) == (0.02, 0.01, 0.005, "adam")
    assert (c.shaping, c.action_noise, c.obs_stat_probability) == ("centered-rank", 0.01, 0.01)
    assert (2 * c.n_pairs, c.min_env_steps, c.iw_updates) == (10_000, 100_000, 0)
    assert (c.clip, c.center, c.min_ess, c.max_kl, c.n_eval) == (1.0, False, 0.0, math.inf, 30)
    assert (c.env_id, c.hidden_sizes, c.weight_kernel) == ("Ant-v5", (64, 64), "cancelled")


@pytest.mark.parametrize(("preset", "units"), [("paper-ant", 64), ("paper-ant-256", 256), ("paper-ant-512", 512)])
def test_presets_of_the_paper(preset, units):
    c = parse(["--preset", preset]).config()
    assert (c.env_id, c.env_kwargs) == ("Ant-v4", {"use_contact_forces": True})
    assert (c.hidden_sizes, c.n_pairs, c.learning_rate, c.iw_updates) == ((units, units), 5000, 1e-4, 4)
    assert (c.clip, c.center, c.sigma) == (1.0, False, 0.02)


def test_there_are_presets():
    assert {"quickstart", "reference-es", "paper-ant", "paper-ant-256", "paper-ant-512", "paper-humanoid"} <= set(
        preset_names()
    )


@pytest.mark.parametrize(
    "name",
    [
        "ant",
        "halfcheetah",
        "hopper",
        "humanoid",
        "inverted-double-pendulum",
        "inverted-pendulum",
        "pusher",
        "reacher",
        "swimmer",
        "walker2d",
    ],
)
def test_presets_of_tasks_are_what_the_study_ran(name):
    """Their comments quote its figures."""
    studied = tomllib.loads((Path(__file__).parent.parent / f"jobs/sample_efficiency/{name}-iwes.toml").read_text())
    limits = {field: None for field in FIELDS if FIELDS[field].metadata["group"] == "limits"}
    assert Config(**(load_preset(name) | limits)) == Config(**(studied | limits))


# -- what may change on resume -------------------------------------------------------------------------------


def test_differences_name_what_changes_results():
    free = {name for name, field in FIELDS.items() if not field.metadata["changes_results"]}
    assert {"iterations", "max_env_steps", "max_wall_time", "run_dir", "checkpoint_every", "display"} <= free
    assert {"log_population", "weights_on", "checkpoint_minutes"} <= free
    results = {"env_id", "env_kwargs", "hidden_sizes", "n_pairs", "sigma", "seed", "noise_table_size", "n_eval"}
    results |= {"clip", "center", "min_ess", "max_kl", "iw_updates", "weight_kernel", "shaping", "optimizer", "l2"}
    results |= {"learning_rate", "momentum", "action_noise", "obs_clip", "obs_stat_probability", "min_env_steps"}
    results |= {"common_random_numbers", "max_episode_steps"}
    assert not results & free
    rng = np.random.default_rng(0)
    for name in FIELDS:
        base = Config()
        value = getattr(base, name)
        while value == getattr(base, name):
            value = random_value(name, rng)
        assert base.differences(dataclasses.replace(base, **{name: value})) == ([] if name in free else [name])


# -- help ----------------------------------------------------------------------------------------------------


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    entries = {}
    for part in re.split(r"\n(?=  --)", text):
        found = re.match(r"  (--[a-z0-9-]+)", part)
        if found:
            entries[found[1]] = " ".join(part.split())
    assert {"--preset", "--config", "--resume"} <= set(entries)
    for name, field in FIELDS.items():
        entry = entries[flag(name)]
        value = getattr(Config(), name)
        if value is None or value == {}:
            assert "default" in entry, entry
        else:
            value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert re.search(rf"default {re.escape(shown)}[\];]", entry), entry
        if field.metadata["unit"]:
            assert field.metadata["unit"] in entry, entry
        for choice in choices(name):
            assert choice in entry, entry
    for preset in preset_names():
        assert preset in entries["--preset"].replace("- ", "-")  # a line may end in a name's hyphen


def test_every_flag_is_a_setting():
    """The parser knows no flag that Config does not, but for where settings come from, and what to do instead."""
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    known = {flag(name) for name in FIELDS} | {"--no-" + flag(n)[2:] for n in FIELDS if HINTS[n] is bool}
    assert flags - known == {"-h", "--help", "--version", "--preset", "--config", "--resume", "--dry-run"}


# -- wrong input ---------------------------------------------------------------------------------------------

BAD_FLAGS = {
    "--sigma": ["0", "-0.1", "nan", "inf", "abc", "", "1,5"],
    "--learning-rate": ["0", "-1e-3", "nan", "inf", "x"],
    "--momentum": ["1", "-0.1", "nan", "1.5"],
    "--l2": ["-1e-9", "nan", "inf"],
    "--n-pairs": ["0", "-5", "1.5", "ten", "2000000000", "nan", "1e400"],
    "--min-env-steps": ["-1", "0.5", "many"],
    "--hidden-sizes": ["0", "-3", "64,64", "1.5", "99999999"],
    "--action-noise": ["-0.1", "nan", "inf"],
    "--obs-clip": ["0", "-5", "nan"],
    "--obs-stat-probability": ["-0.1", "1.1", "nan"],
    "--shaping": ["rank", "", "Centered-Rank"],
    "--optimizer": ["rmsprop", "Adam"],
    "--iw-updates": ["-1", "1.5", "inf"],
    "--clip": ["0", "-1", "nan", "none"],
    "--min-ess": ["-0.1", "1.1", "nan"],
    "--max-kl": ["0", "-1", "nan"],
    "--weight-kernel": ["fast"],
    "--weights-on": ["gpu"],
    "--n-eval": ["-1", "2.5"],
    "--iterations": ["-1", "x"],
    "--max-env-steps": ["0", "-1", "1.5"],
    "--max-wall-time": ["0", "-3", "nan", "inf", "1h"],
    "--max-episode-steps": ["0", "-1"],
    "--seed": ["-1", str(2**64), "0.5", "abc"],
    "--noise-table-size": ["0", "-1", "1.5"],
    "--checkpoint-every": ["-1"],
    "--checkpoint-minutes": ["0", "-1", "nan"],
    "--display": ["loud"],
    "--env-id": ["", " ", "two\nlines"],
    "--env-kwargs": ["{", "[1]", "3", "null", '{"a": }', "{a: 1}", "x" * 300, "[" * 100_000],
    "--preset": ["no-such", "", "../quickstart"],
    "--resume": ["sometimes"],
    "--config": ["/no/such/file.toml", "/", "/dev/null/x"],
}


SPELL = build_parser().describe


def refused(call, spell=SPELL):
    """The setting and what is wrong with it, in the one line that a wrong input gives; by default on a command line."""
    with pytest.raises(WrongInput) as error:
        call()
    text = spell(error.value)
    assert text.splitlines() == [text]
    assert text.isprintable()
    setting, _, problem = text.partition(": ")
    assert len(problem) > 5
    return setting, problem


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_FLAGS.items() for value in values])
def test_wrong_values_give_one_line_that_names_the_flag(name, value):
    setting, problem = refused(lambda: parse([f"{name}={value}"]))
    assert setting.split()[0] == name
    if value in ("abc", "1.5", "rank", "rmsprop", "fast", "gpu", "loud", "no-such", "{a: 1}", "sometimes", "1h", "-5"):
        assert value in problem, "the offending value is shown"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--sigmaa", "1"], "--sigmaa"),
        (["--sig", "1"], "--sig"),  # no abbreviations: a later setting could change their meaning
        (["--n-pairs"], "--n-pairs"),
        (["--center", "yes"], "yes"),
        (["stray"], "stray"),
        (["--env-kwargs", "{}", "{}"], "{}"),
        (["--resume"], "--resume"),
        (["--resume", "--preset", "quickstart"], "--resume"),
    ],
)
def test_wrong_command_lines_give_one_line(argv, named):
    assert refused(lambda: parse(argv))[0] == named


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"sigma = 0", "--sigma"),
        (b"sigma = '0.1'", "--sigma"),
        (b"sigma = nan", "--sigma"),
        (b"sgima = 0.1", "sgima"),
        (b"sigma = ", "TOML"),
        (b"sigma = 0.1\nsigma = 0.2", "TOML"),
        (b"[population]\nsigma = 0.1", "population"),
        (b"n_pairs = true", "--n-pairs"),
        (b"n_pairs = 2.5", "--n-pairs"),
        (b"center = 1", "--center"),
        (b"center = 'yes'", "--center"),
        (b"hidden_sizes = 64", "--hidden-sizes"),
        (b"hidden_sizes = ['64']", "--hidden-sizes"),
        (b"hidden_sizes = [true]", "--hidden-sizes"),
        (b"env_kwargs = 3", "--env-kwargs"),
        (b"env_kwargs = '[1]'", "--env-kwargs"),
        (b"shaping = 3", "--shaping"),
        (b"env_id = 3", "--env-id"),
        (b"seed = -1", "--seed"),
        (b"seed = 2001-01-01", "--seed"),
        (b"max_kl = 'infinite'", "--max-kl"),
        (b"\xff\xfe", "UTF-8"),
        (b"a = " + b"[" * 5000, "TOML"),
    ],
)
def test_wrong_files_give_one_line_that_names_file_and_setting(tmp_path, content, named):
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    for argv in (["--config", str(file)], ["--config", str(file), "--preset", "quickstart", "--seed", "3"]):
        setting, problem = refused(lambda argv=argv: parse(argv))
        assert setting == f"--config {file}"
        assert named in problem


@pytest.mark.parametrize("name", ["learning_rat", "lr"])
def test_a_misspelt_setting_is_recognized(tmp_path, name):
    (tmp_path / "mine.toml").write_text(f"{name} = 0.1\n")
    with pytest.raises(WrongInput, match="did you mean learning_rate"):
        load_toml(tmp_path / "mine.toml")


@pytest.mark.parametrize("text", ["{}x", "[]", "3", '{"nonsense": 1}', '{"sigma": -1}'])
def test_damaged_json_is_refused(text):
    with pytest.raises((ValueError, TypeError)):  # what reads logs and checkpoints turns both into its own error
        Config.from_json(text)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [object(), [None], {1: 2}, math.nan, 1j], ids=lambda value: type(value).__name__)
def test_values_of_wrong_types_name_the_setting(name, value):
    assert refused(lambda: Config(**{name: value}), str)[0] == name
