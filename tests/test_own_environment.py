"""What is said of a user's own environment that does not work, and one whose observations are flattened."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from iwes_mpi.mpi.program import Refused, run_body
from iwes_mpi.rollouts.environments import make_env
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

CONSTRUCTOR = """
import gymnasium

class Mine(gymnasium.Env):
    def __init__(self, size=1):
        self.size = size
        self.build()

    def build(self):
        raise KeyError("leg")

gymnasium.register("{name}-v0", entry_point=Mine, max_episode_steps=5)
"""


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, **kwargs: object) -> WrongInput:
    """The error of a module with this text."""
    (tmp_path / f"{name}.py").write_text(text.replace("{name}", name.title()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(WrongInput) as error:
        make_env(Config(env_id=f"{name}:{name.title()}-v0", env_kwargs=kwargs))
    assert "\n" not in str(error.value)
    return error.value


def test_a_bug_in_the_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(tmp_path, monkeypatch, "broken_module", "def f():\n    return 1 / 0\n\nf()\n")
    lines = found.detail.splitlines()
    assert lines[1].endswith('broken_module.py", line 4, in <module>'), "not Python's import system"
    assert 'broken_module.py", line 2, in f' in found.detail
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_line_that_is_no_python_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(tmp_path, monkeypatch, "misspelled_module", "x = 1\ny = = 2\n")
    assert 'misspelled_module.py", line 2' in found.detail


def test_a_bug_in_the_constructor_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(tmp_path, monkeypatch, "mine_module", CONSTRUCTOR)
    assert 'mine_module.py", line 7, in __init__' in found.detail
    assert 'mine_module.py", line 10, in build' in found.detail
    assert "gymnasium/envs/registration.py" not in found.detail


def test_what_is_no_bug_of_the_users_stays_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path, monkeypatch, "kwargs_module", CONSTRUCTOR, no_such=1).detail == ""
    for name in ("no_such_module:Env-v0", "NoSuchEnv-v0"):
        with pytest.raises(WrongInput) as error:
            make_env(Config(env_id=name))
        assert error.value.detail == ""


def test_the_detail_is_printed_below_the_line(capsys: pytest.CaptureFixture[str], world: object) -> None:
    from iwes_mpi.settings.command_line import build_parser

    def body(world: object, argv: list[str]) -> int:
        raise Refused(WrongInput("env_id", "does not work", detail="line 1\nline 2\n"))

    assert run_body("iwes_mpi.train", build_parser, body, world, []) == 2
    assert capsys.readouterr().err == "iwes_mpi.train: error: --env-id: does not work\nline 1\nline 2\n"


def test_flattened_observations() -> None:
    env = make_env(Config(env_id="environments:Flat-v0"))
    plain = gymnasium.make("Drift-v0")
    assert env.observation_space.shape == (3,)
    mine, other = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    np.testing.assert_array_equal(np.sort(mine), np.sort(other))
