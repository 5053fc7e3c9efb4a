"""Wrong input is refused before any work: one line that names the setting, printed once, exit code 2."""

import json
import shutil
from pathlib import Path

import launch
import pytest

RANKS = 3

# What is wrong, and what the one line must name
LINES = {
    "--n-pairs 0": "--n-pairs",
    "--n-pairs -5": "--n-pairs",
    "--n-pairs 1.5": "--n-pairs",
    "--n-pairs many": "--n-pairs",
    "--n-pairs": "--n-pairs",
    "--n-pairs 2000000000": "--n-pairs",
    "--sigma 0": "--sigma",
    "--sigma -0.1": "--sigma",
    "--sigma nan": "--sigma",
    "--sigma inf": "--sigma",
    "--learning-rate 0": "--learning-rate",
    "--learning-rate fast": "--learning-rate",
    "--l2 -1": "--l2",
    "--momentum 1": "--momentum",
    "--clip 0": "--clip",
    "--clip -1": "--clip",
    "--min-ess 1.5": "--min-ess",
    "--max-kl 0": "--max-kl",
    "--iw-updates -1": "--iw-updates",
    "--n-eval -1": "--n-eval",
    "--seed -1": "--seed",
    "--seed 18446744073709551616": "--seed",
    "--shaping rank": "--shaping",
    "--optimizer lion": "--optimizer",
    "--weights-on gpu": "--weights-on",
    "--weight-kernel fast": "--weight-kernel",
    "--schedule later": "--schedule",
    "--hidden-sizes 0": "--hidden-sizes",
    "--hidden-sizes 64 x": "--hidden-sizes",
    "--action-noise -0.1": "--action-noise",
    "--obs-clip 0": "--obs-clip",
    "--obs-stat-probability 2": "--obs-stat-probability",
    "--noise-table-size 0": "--noise-table-size",
    "--noise-table-size 30": "--noise-table-size",
    "--noise-table-size 100000000000000": "--noise-table-size",
    "--iterations -1": "--iterations",
    "--max-env-steps 0": "--max-env-steps",
    "--max-wall-time 0": "--max-wall-time",
    "--checkpoint-minutes 0": "--checkpoint-minutes",
    "--checkpoint-every -1": "--checkpoint-every",
    "--min-env-steps -1": "--min-env-steps",
    "--max-episode-steps 0": "--max-episode-steps",
    "--pairs 5": "--pairs",
    "--run-dir=": "--run-dir",
    "stray": "stray",
    "--preset nonsense": "--preset",
    "--config /does/not/exist.toml": "--config",
    "--resume": "--run-dir",
    "--resume sometimes": "--resume",
    "--env-id NoSuchEnv-v0": "--env-id",
    "--env-id no_such_module:Env-v0": "--env-id",
    "--env-id CartPole": "is it CartPole-v1?",
    "--env-id Blackjack-v1 --max-episode-steps 9": "--env-id",
    "--env-id FrozenLake-v1": "--env-id",
    "--env-id environments:Endless-v0": "--max-episode-steps",
    "--env-id environments:Nested-v0": "gymnasium.wrappers.FlattenObservation",
    "--env-id environments:Picture-v0": "these are images: wrap it in gymnasium.wrappers.FlattenObservation",
    "--env-kwargs {": "--env-kwargs",
    "--env-kwargs [1]": "--env-kwargs",
    '--env-kwargs {"no_such_argument":1}': "--env-kwargs",
    '--train-env-kwargs {"no_such_argument":1}': "--train-env-kwargs",
    "--train-env-kwargs [1]": "--train-env-kwargs",
    "--env-id": "--env-id",
    "-- stray": "stray: is not a setting of this program; see --help",
    "--n-pairs 1073741824": "--n-pairs",
    "--n-eval 1099511627776": "GB for each: at most",
    f"--n-pairs {'1' * 50}": "--n-pairs",
    f"--sigma 1{'0' * 400}": "--sigma",
    f"--run-dir {'x' * 300}": "--run-dir",
    f"--run-dir {'x' * 300}/run": "File name too long",
    "--run-dir a\x1b[31mb": r"--run-dir: must be text without control characters, not empty, got a\x1b[31mb",
    "--\x1b[31mcolor": r"--\x1b[31mcolor",
    "--preset \x1b[31m": r"\x1b[31m",
    "--config /dev/zero": "is longer than",
    '--env-kwargs {"x":NaN}': "--env-kwargs: holds nan: JSON has finite numbers only",
    '--env-kwargs {"x":[Infinity]}': "--env-kwargs: holds inf",
    '--env-kwargs {"x":1' + 5000 * "0" + "}": "--env-kwargs",
    '--env-kwargs {"x":' + 60 * "[" + 60 * "]" + "}": "--env-kwargs: is nested more than 50",
    '--env-kwargs {"max_episode_steps":-1}': "a setting of its own, --max-episode-steps",
    '--train-env-kwargs {"max_episode_steps":5}': "a setting of its own, --max-episode-steps",
    '--env-kwargs {"render_mode":"smell"}': "has no render mode 'smell'; it has none",
    "--env-id exits:Env-v0": "--env-id: importing exits failed: SystemExit: 3",
    "--env-id interrupts:Env-v0": r"interrupts failed: KeyboardInterrupt: \x1b[31mred\x1b]0;owned\x07",
    '--env-id misbehaving:Misbehaving-v0 --env-kwargs {"made":"exit"}': "--env-kwargs",
    '--env-id misbehaving:Misbehaving-v0 --env-kwargs {"made":"interrupt"}': "cannot be made: KeyboardInterrupt",
    '--env-id misbehaving:Misbehaving-v0 --env-kwargs {"made":"colors"}': r"ValueError: \x1b[31mred\x1b]0;owned\x07",
    '--env-id misbehaving:Misbehaving-v0 --env-kwargs {"gives":"no·spaces"}': "--env-id",
    '--env-id misbehaving:Misbehaving-v0 --env-kwargs {"gives":"another·space","rank":1}': "but 3 and 2 on",
}

TOML = {
    "sigma = -1": "--sigma",
    "sigma = 'wide'": "--sigma",
    "n_pairs = 1.5": "--n-pairs",
    "n_pair = 5": "n_pair",
    "center = 1": "--center",
    "hidden_sizes = 64": "--hidden-sizes",
    "env_kwargs = 3": "--env-kwargs",
    "[population]\nsigma = 1": "population",
    "sigma =": "TOML",
    "sigma = 1\nsigma = 2": "TOML",
    "\x00": "TOML",
    "clip = nan": "--clip",
    "n-pairs = 3\nn_pairs = 4": "names n_pairs twice",
    "n_pairs = 3\rsigma = 0.1\r": "TOML",
    "env_kwargs = {a = 1979-05-27}": "--env-kwargs: holds datetime.date(1979, 5, 27), which JSON cannot",
    f"env_kwargs = {{a = {'1' * 50}}}": "--env-kwargs: holds 111",
    "env_kwargs = {a = {b = nan}}": "--env-kwargs: holds nan",
    f"n_pairs = {'1' * 5000}": "TOML",
    f"sigma = 1{'0' * 400}": "--sigma",
    '"\\u001b[31m" = 3': r"unknown setting \x1b[31m",
    'shaping = "\\u001b[31m"': r"--shaping: must be one of",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[list[object]], Path]]:
    """For every case: what the line must name, what each rank did, and the run directory it was given."""
    root = tmp_path_factory.mktemp("bad")
    small = [*launch.SMALL, "--env-id", "environments:Drift-v0"]
    cases: dict[str, tuple[str, list[str], Path]] = {}

    def add(name: str, setting: str, arguments: list[str], run_dir: Path | None = None) -> None:
        where = run_dir or root / f"run{len(cases)}"
        placed = (
            [] if arguments[-1] in ("--resume", "--run-dir=") else ["--run-dir", str(where)]
        )  # to resume it must be named
        if "--run-dir" in arguments:
            placed = []
        cases[name] = (setting, [argument.replace("·", " ") for argument in (*arguments, *placed)], where)

    for line, setting in LINES.items():
        add(line, setting, [*small, *line.split()])
    for number, (text, setting) in enumerate(TOML.items()):
        path = root / f"{number}.toml"
        path.write_text(text)
        add(f"TOML {text}", setting, [*small, "--config", str(path)])

    good = root / "good"
    assert launch.train(1, *launch.SMALL, "--iterations", "1", "--run-dir", str(good)).code == 0
    add("a run is there", "--run-dir", small, good)
    add("other sigma", "--sigma", ["--sigma", "0.5", "--resume", "always"], good)
    add("other environment", "--env-id", ["--env-id", "Ant-v5", "--resume", "always"], good)
    add("other seed", "--seed", ["--seed", "9", "--resume", "always"], good)
    add("no run to resume", "--resume", ["--resume", "always"], root / "nothing")
    plain = root / "plain-file"
    plain.write_text("")
    add("run directory is a file", "--run-dir", small, plain)
    add("run directory below a file", "--run-dir", small, plain / "run")
    for name in ("checkpoint.h5", "config.toml"):
        broken = root / f"broken-{name}"
        shutil.copytree(good, broken)
        (broken / name).write_bytes(b"not what it should be")
        (broken / "checkpoint-previous.h5").unlink(missing_ok=True)
        add(f"broken {name}", name, ["--resume", "always"], broken)
    edited = root / "edited-config"
    shutil.copytree(good, edited)
    text = (edited / "config.toml").read_text()
    (edited / "config.toml").write_text(text.replace("learning_rate = 0.02", "learning_rate = 0.5"))
    add("config.toml edited", "learning_rate", ["--resume", "always"], edited)
    headless = root / "no-config"
    shutil.copytree(good, headless)
    (headless / "config.toml").unlink()
    add("no config.toml", "--run-dir", small, headless)

    script = root / "cases.json"
    script.write_text(json.dumps([arguments for _, arguments, _ in cases.values()]))
    outcome = launch.program(RANKS, "bad_input.py", str(script), timeout=240)
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    return {name: (cases[name][0], ranks, cases[name][2]) for name, ranks in zip(cases, told, strict=True)}


@pytest.mark.slow
def test_there_are_at_least_forty_kinds(answers: dict[str, object]) -> None:
    assert len(answers) >= 40


# Those in which code of an environment fails.
FAILING = {
    "--env-id exits:Env-v0",
    "--env-id interrupts:Env-v0",
    *(
        f'--env-id misbehaving:Misbehaving-v0 --env-kwargs {{"made":"{made}"}}'
        for made in ("exit", "interrupt", "colors")
    ),
}


@pytest.mark.slow
def test_each_is_one_line_that_names_the_setting_printed_once(
    answers: dict[str, tuple[str, list[tuple[int, str, str]], Path]],
) -> None:
    wrong = []
    for name, (setting, ranks, _) in answers.items():
        codes = [code for code, _, _ in ranks]
        printed = [text for _, out, err in ranks for text in (out + err).splitlines()]
        plain = all(text.isprintable() for text in printed)
        # Where the user's own code fails, its traceback stands below the line.
        once = len(printed) == 1 or (name in FAILING and printed[1:].count("Traceback (most recent call last):") == 1)
        if codes != [2] * RANKS or not once or setting not in printed[0] or not plain:
            wrong.append((name, setting, codes, printed))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.slow
def test_none_began_a_run(answers: dict[str, tuple[str, object, Path]]) -> None:
    for _, _, run_dir in answers.values():
        assert "good" in run_dir.name or "-" in run_dir.name or not run_dir.exists()


@pytest.mark.mpi
def test_under_a_real_launcher(tmp_path: Path) -> None:
    outcome = launch.train(RANKS, "--sigma", "-1", "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 2
    assert outcome.err.count("--sigma") == 1
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_an_environment_that_is_missing_on_one_node(tmp_path: Path) -> None:
    kwargs = json.dumps({"fault": "absent", "rank": 1})
    absent = ["--env-id", "environments:Faulty-v0", "--env-kwargs", kwargs, "--run-dir", str(tmp_path / "run")]
    outcome = launch.train(RANKS, *launch.SMALL, *absent)
    assert outcome.code == 2, outcome.err
    said = [line for line in outcome.err.splitlines() if "--env-kwargs" in line]
    assert len(said) == 1, outcome.err
    assert "its model is not on this node (on rank 1, node " in said[0]
    assert outcome.err.count("Traceback") == 1, "of the environment's own code, below the line"
    assert 'environments.py", line' in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_help_is_printed_once_and_ends_with_zero() -> None:
    outcome = launch.train(RANKS, "--help")
    assert outcome.code == 0
    assert outcome.out.count("\n  --learning-rate X ") == 1


@pytest.mark.mpi
def test_a_launcher_of_another_mpi_is_noticed() -> None:
    """Processes that are each rank 0 of 1, although the launcher started several, stop with a sentence."""
    for rank in ("0", "1"):
        outcome = launch.program(1, "other_mpi.py", rank)
        assert outcome.code != 0
        assert "started 3 processes (PMI_SIZE), but each of them is rank 0 of 1" in outcome.err
