"""Choices that are files: what there is fulfils its protocol, and a file that is added is a choice like the others."""

import ast
import dataclasses
import importlib
import inspect
import io
import shutil
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import reference
from fakes import build, epsilons, smooth
from numba.core.caching import NullCache

import iwes_mpi
from iwes_mpi.files import checkpoint
from iwes_mpi.files.checkpoint import Checkpoint
from iwes_mpi.method import kernels, optimizers, shapings, weight_kernels
from iwes_mpi.method.schedules import factor
from iwes_mpi.settings import command_line, registry
from iwes_mpi.settings.command_line import build_parser
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.registry import EPISODE_SCHEDULES, OPTIMIZERS, SCHEDULES, SHAPINGS, WEIGHT_KERNELS, Registry
from iwes_mpi.settings.wrong_input import WrongInput

REGISTRIES = {
    "method/optimizers": OPTIMIZERS,
    "method/shapings": SHAPINGS,
    "method/schedules": SCHEDULES,
    "method/weight_kernels": WEIGHT_KERNELS,
}
# The settings that choose from a registry.
SETTINGS = {f.name: f.metadata["choices"] for f in dataclasses.fields(Config) if f.metadata["choices"] is not None}


# -- names ---------------------------------------------------------------------------------------------------


def test_settings_choose_from_the_registries():
    assert SETTINGS == {
        "optimizer": OPTIMIZERS,
        "shaping": SHAPINGS,
        "sigma_schedule": SCHEDULES,
        "learning_rate_schedule": SCHEDULES,
        "weight_kernel": WEIGHT_KERNELS,
        "episode_schedule": EPISODE_SCHEDULES,
    }


@pytest.mark.parametrize("folder", REGISTRIES)
def test_names_are_those_of_the_files(folder):
    """Every module, in alphabetical order, with dashes; none of what begins with an underscore."""
    files = sorted(p for p in (Path(iwes_mpi.__file__).parent / folder).iterdir() if p.suffix == ".py")
    names = [p.stem.replace("_", "-") for p in files if not p.stem.startswith("_")]
    assert list(REGISTRIES[folder].names) == names
    for name in names:
        module = REGISTRIES[folder].module(name)
        assert Path(module.__file__).stem == name.replace("-", "_")
        assert module.__name__ == f"iwes_mpi.{folder.replace('/', '.')}.{name.replace('-', '_')}"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("value", ["nothing", "", "Adam", "centered_rank", "../optimizers/adam", "__init__"])
def test_unknown_names_are_refused(setting, value):
    """In the settings and from the registry itself, naming the setting and what there is to choose from."""
    choices = SETTINGS[setting]
    with pytest.raises(WrongInput) as caught:
        Config(**{setting: value})
    assert caught.value.setting == setting
    assert caught.value.problem == f"must be one of {', '.join(choices.names)}, got {value!r}"
    with pytest.raises(WrongInput) as caught:
        choices.module(value)
    assert caught.value.problem == f"must be one of {', '.join(choices.names)}, got {value!r}"


@pytest.mark.parametrize(
    ("setting", "use"),
    [
        ("optimizer", optimizers.optimizer_named),
        ("shaping", lambda name: shapings.shape(np.zeros((2, 2)), name)),
        ("weight_kernel", weight_kernels.kernel_named),
    ],
)
def test_unknown_names_in_calls_are_refused(setting, use):
    with pytest.raises(WrongInput, match=r"must be one of .*, got 'nothing'") as caught:
        use("nothing")
    assert caught.value.setting == setting


@pytest.mark.parametrize("value", [3, None, True, ["adam"]])
def test_names_that_are_not_text_are_refused(value):
    with pytest.raises(WrongInput) as caught:
        Config(optimizer=value)
    assert caught.value.setting == "optimizer"


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_command_line_refuses_and_explains(setting):
    """It says the flag, and its help says each choice's first line."""
    flag = command_line.flag(setting)
    with pytest.raises(WrongInput) as caught:
        command_line.parse([flag, "nothing"]).config()
    said = build_parser().describe(caught.value)
    assert said.startswith(f"{flag}: ")
    assert all(name in said for name in SETTINGS[setting].names)
    shown = " ".join(build_parser().format_help().split())
    for name in SETTINGS[setting].names:
        assert build_parser().spell(f"{name}: {SETTINGS[setting].summary(name)}") in shown


# -- protocols -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "name"), [(f, name) for f, r in REGISTRIES.items() for name in r.names])
def test_every_choice_says_what_it_is(folder, name):
    """In one line that ends a sentence, without importing compiled code."""
    summary = REGISTRIES[folder].summary(name)
    module = REGISTRIES[folder].module(name)
    assert module.__doc__.startswith(summary)
    assert 10 < len(summary) < 110
    assert not summary.endswith(".")
    assert "\n" not in summary


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_optimizers_fulfil_their_protocol(name):
    module, d = OPTIMIZERS.module(name), 7
    state = module.init(d)
    assert type(state) is module.State
    assert module.State._fields[0] == "step"
    assert state.step == 0
    rng = np.random.default_rng(1)
    theta = np.zeros(d)
    for made in range(1, 4):
        gradient = rng.standard_normal(d)
        state, step = module.update(state, gradient, 0.01, 0.9)
        theta += step
        assert type(state) is module.State
        assert type(state.step) is int
        assert state.step == made
        for field in state[1:]:
            assert field.dtype == np.float64
            assert field.shape == (d,)
        assert step.dtype == np.float64
        assert step.shape == (d,)
        assert step @ gradient < 0 or made > 1, "down the gradient"
    again = optimizers.restored(name, optimizers.saved(state))
    assert type(again) is module.State


@pytest.mark.parametrize("name", SHAPINGS.names)
def test_shapings_fulfil_their_protocol(name):
    """Finite utilities of the same shape, in the returns' order, and the returns are left as they are."""
    rng = np.random.default_rng(2)
    for returns in (rng.standard_normal((6, 2)) * 1e5, np.full((4, 2), 3.0), np.array([[1.0, 2.0]])):
        before = returns.copy()
        utilities = SHAPINGS.module(name).shape(returns, 0.5)
        assert (returns == before).all()
        assert not np.shares_memory(utilities, returns)
        assert utilities.dtype == np.float64
        assert utilities.shape == returns.shape
        assert np.isfinite(utilities).all()
        if name != "top-directions":  # whose utilities are 0 for the pairs that are left out
            order = np.argsort(returns, axis=None, kind="stable")
            assert (np.diff(utilities.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("name", SCHEDULES.names)
def test_schedules_fulfil_their_protocol(name):
    factor = SCHEDULES.module(name).factor
    assert list(inspect.signature(factor).parameters) == ["end", "t"]
    for end in (0.2, 5.0, 1.0):
        assert factor(end, 0.0) == 1
        for t in (0.0, 0.2, 0.5, 1.0):
            assert type(factor(end, t)) is float


@pytest.mark.parametrize("name", WEIGHT_KERNELS.names)
def test_weight_kernels_fulfil_their_protocol(noise, name):
    """A NamedTuple that compiled code takes, whose weights are eq. 4's; called from Python it gives the same."""
    kind = weight_kernels.kernel_named(name)
    assert issubclass(kind, tuple)
    rng = np.random.default_rng(3)
    d, starts = 40, np.array([0, 17, 300])
    delta = rng.standard_normal(d) * 0.2
    weights = kind.of(noise, delta, kernels.sum_squares(delta))
    assert type(weights) is kind
    found = np.zeros((3, 2))
    kernels.log_weights(weights, starts, found)
    expected, _ = reference.importance(epsilons(noise, starts, d), delta)
    np.testing.assert_allclose(found, expected.astype(float), atol=2e-6)
    np.testing.assert_allclose([weights.log_weights(start) for start in starts], found, atol=1e-6)


# -- a file that is added ------------------------------------------------------------------------------------


NESTEROV = '''
    """a look ahead along the velocity (Nesterov 1983).

    Put into the folder by a test.
    """

    from typing import NamedTuple

    import numpy as np


    class State(NamedTuple):
        """The look-ahead's memory."""

        step: int
        drift: np.ndarray
        largest: np.ndarray


    def init(d):
        return State(0, np.zeros(d), np.zeros(d))


    def update(state, gradient, learning_rate, momentum):
        drift = momentum * state.drift - learning_rate * gradient
        largest = np.maximum(state.largest, np.abs(gradient))
        return State(state.step + 1, drift, largest), momentum * drift - learning_rate * gradient
'''


@pytest.fixture
def add_file(tmp_path, monkeypatch):
    """Puts a module into one of the folders: into a copy that takes the folders' place."""

    for folder, chosen in REGISTRIES.items():
        shutil.copytree(Path(iwes_mpi.__file__).parent / folder, tmp_path / folder)
        package = importlib.import_module(f"iwes_mpi.{folder.replace('/', '.')}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
        vars(chosen).pop("_files", None)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    before = set(sys.modules)
    yield lambda folder, name, text: (tmp_path / folder / name).write_text(textwrap.dedent(text).lstrip())
    for chosen in REGISTRIES.values():
        vars(chosen).pop("_files", None)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).is_relative_to(tmp_path):
            package, _, module = name.rpartition(".")
            vars(sys.modules[package]).pop(module, None)
            del sys.modules[name]


def test_an_optimizer_that_is_added_is_found(add_file):
    """By the settings, the command line and its help; without its file's name being anywhere else."""
    add_file("method/optimizers", "look_ahead.py", NESTEROV)
    assert OPTIMIZERS.names == ("adam", "clipup", "look-ahead", "sgd")
    assert Config(optimizer="look-ahead").optimizer == "look-ahead"
    assert command_line.parse(["--optimizer", "look-ahead"]).config().optimizer == "look-ahead"
    assert "look-ahead: a look ahead along the velocity (Nesterov 1983)" in " ".join(
        build_parser().format_help().split()
    )
    with pytest.raises(WrongInput, match="must be one of adam, clipup, look-ahead, sgd, got 'ahead'"):
        Config(optimizer="ahead")


def test_an_optimizer_that_is_added_trains_and_is_restored(add_file, world, noise):
    """Its state goes by its own field names in checkpoints, and a run that goes on from one is the run itself."""
    add_file("method/optimizers", "look_ahead.py", NESTEROV)
    settings = {"optimizer": "look-ahead", "learning_rate": 0.1, "iw_updates": 1, "l2": 0.0}
    run, _ = build(world, noise, smooth, **settings)
    first = smooth(run.state.theta, None)
    for _ in range(5):
        run.iterate()
    saved = checkpoint.encode(Checkpoint(run.state, run.config, {}, {}))
    for _ in range(5):
        run.iterate()
    assert smooth(run.state.theta, None) > 0.5 * first, "it climbs"
    assert first < 0
    with h5py.File(io.BytesIO(saved)) as file:
        assert set(file["optimizer"]) == {"step", "drift", "largest"}
    found = checkpoint.decode(saved, "it")
    assert found.config == run.config
    assert type(found.state.optimizer).__doc__ == "The look-ahead's memory."
    assert found.state.optimizer.step == 10
    again, _ = build(world, noise, smooth, state=found.state, **settings)
    for _ in range(5):
        again.iterate()
    assert again.state.theta.tobytes() == run.state.theta.tobytes()
    for a, b in zip(again.state.optimizer, run.state.optimizer, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_checkpoint_of_an_optimizer_that_is_gone_is_refused(add_file, tmp_path, world, noise):
    add_file("method/optimizers", "look_ahead.py", NESTEROV)
    run, _ = build(world, noise, smooth, optimizer="look-ahead")
    run.iterate()
    saved = checkpoint.encode(Checkpoint(run.state, run.config, {}, {}))
    (tmp_path / "method/optimizers/look_ahead.py").unlink()
    del vars(OPTIMIZERS)["_files"]
    with pytest.raises(
        checkpoint.CheckpointError, match=r"understood: .*optimizer: must be one of adam, clipup, sgd, got"
    ):
        checkpoint.decode(saved, "it")


def test_a_shaping_that_is_added_shapes(add_file, world, noise):
    """Here the sign of the returns' distance to their mean."""
    add_file(
        "method/shapings", "sign.py", '''
        """the sign of the distance to the mean."""

        import numpy as np


        def shape(returns, top_share):
            return np.sign(returns - returns.mean())
        '''
    )  # fmt: skip
    run, _ = build(world, noise, smooth, shaping="sign", optimizer="sgd", momentum=0.0, l2=0.0, learning_rate=0.1)
    theta = run.state.theta.copy()
    population = run.iterate().population
    u = np.sign(population.returns - population.returns.mean())
    expected = theta + 0.1 * (u[:, 0] - u[:, 1]) @ epsilons(noise, population.starts, theta.size).astype(float) / 60
    np.testing.assert_allclose(run.state.theta, expected, rtol=1e-9)


def test_a_schedule_that_is_added_schedules(add_file):
    add_file("method/schedules", "late.py", '"""at the very end."""\n\n\ndef factor(end, t):\n'
             '    return end if t == 1.0 else 1.0\n')  # fmt: skip
    assert [factor("late", 0.5, i, 4) for i in range(6)] == [1, 1, 1, 1, 0.5, 0.5]
    assert Config(sigma_schedule="late", learning_rate_schedule="late").sigma_schedule == "late"


def test_a_weight_kernel_that_is_added_weighs(add_file, monkeypatch, world, noise):
    """Compiled with the rest; here with every weight 1, so that each reuse is plain ES once more."""
    for function in (kernels.log_weights, kernels.weigh_and_accumulate):  # nothing of this to the cache on disk
        monkeypatch.setattr(function, "_cache", NullCache())
    add_file(
        "method/weight_kernels", "all_alike.py", '''
        """no weights at all."""

        from typing import NamedTuple

        import numpy as np

        from iwes_mpi.compiled.jit import compiled


        class Weights(NamedTuple):
            r2: float

            @classmethod
            def of(cls, noise, delta, r2):
                return cls(r2)

            @compiled
            def log_weights(self, start):
                return 0.0 * self.r2, 0.0
        '''
    )  # fmt: skip
    run, _ = build(world, noise, smooth, weight_kernel="all-alike", iw_updates=2, learning_rate=0.01)
    report = run.iterate()
    assert [update.estimate.ess for update in report.updates] == [1, 1, 1]
    assert [update.estimate.mean_weight for update in report.updates] == [1, 1, 1]
    assert report.updates[2].kl > 0


# -- the folder of a registry --------------------------------------------------------------------------------


def test_files_are_looked_up_once_and_not_imported(tmp_path, monkeypatch):
    """For names and summaries a file is read; one that cannot be imported harms only those who choose it."""
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    folder = tmp_path / "some" / "folder"
    folder.mkdir(parents=True)
    (folder / "good_one.py").write_text('"""first line.\n\nMore."""\n')
    (folder / "broken.py").write_text('"""breaks."""\nraise RuntimeError("imported")\n')
    (folder / "_helper.py").write_text('"""not a choice."""\n')
    (folder / "notes.txt").write_text("not Python")
    found = Registry("some/folder", "a_setting")
    assert found.names == ("broken", "good-one")
    assert found.summary("good-one") == "first line"
    assert found.summary("broken") == "breaks"
    with pytest.raises(WrongInput) as caught:
        found.module("_helper")
    assert caught.value.setting == "a_setting"


def test_help_does_not_import_the_method():
    """Names and summaries come from the files' text: nothing that compiles is imported for a command line."""
    source = (Path(iwes_mpi.__file__).parent / "settings" / "registry.py").read_text("utf-8")
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imported if node.module.startswith("iwes_mpi")} == {"iwes_mpi.settings.wrong_input"}
