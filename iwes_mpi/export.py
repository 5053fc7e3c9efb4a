"""``python -m iwes_mpi.export RUN [--to FORM] [-o FILE]``: a run's policy as a file that other programs act with."""

from iwes_mpi.mpi import process  # isort: skip  # noqa: F401 - before NumPy: it settles the number of threads

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from iwes_mpi.files.checkpoint import CheckpointError, load, policy_in
from iwes_mpi.files.reader import LogError
from iwes_mpi.files.run import Run
from iwes_mpi.policy.exports import FORMS, ExportError, export, require
from iwes_mpi.policy.policy import Policy
from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.export``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.export",
        description="Write a run's policy to a file: normalizer, network, and the bounds of its actions. The file is "
        "read again and must act like the policy, or it is removed.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="run directory, or a checkpoint file")
    forms = "; ".join(f"{name}: {FORMS.summary(name)}" for name in FORMS.names)
    parser.add_argument(
        "--to", choices=FORMS.names, help=f"the form of the file. {forms} [default: by the file's name, else npz]"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the file [default: policy.npz, or so, by --to]")
    parser.add_argument(
        "--trust", action="store_true", help="import the module that the run's env_id names: its code is executed"
    )
    parser.add_argument(
        "--checkpoint", type=int, metavar="N", help="the kept checkpoint of iteration N [default: the newest]"
    )
    return parser


def _policy(run: str, checkpoint: int | None, trust: bool) -> Policy:
    """The policy of a run or a checkpoint file. Raises WrongInput."""
    path = Path(run)
    try:
        if not path.exists():
            raise WrongInput("run", f"{path} does not exist")
        if path.is_dir():
            return Run(path).policy(checkpoint, trust=trust)
        if checkpoint is not None:
            raise WrongInput("checkpoint", f"needs a run directory, but {path} is a file")
        return policy_in(load(path), run, trust)
    except (CheckpointError, LogError) as error:
        raise WrongInput("run" if checkpoint is None else "checkpoint", str(error)) from None
    except OSError as error:
        raise WrongInput("run", f"{path}: {error.strerror}" if error.strerror else str(error)) from None


def main(argv: Sequence[str]) -> int:
    """Write the file that a command line asks for; returns the exit code. Raises WrongInput if it is wrong."""
    options = build_parser().parse_args(list(argv))
    output = Path(f"policy{FORMS.module(options.to or 'npz').SUFFIX}" if options.output is None else options.output)
    suffixes = {FORMS.module(name).SUFFIX: name for name in FORMS.names}
    form = options.to or suffixes.get(output.suffix)
    if form is None:
        raise WrongInput("to", f"is needed where FILE ends in none of {', '.join(suffixes)}")
    if options.output is not None and suffixes.get(output.suffix, form) != form:
        raise WrongInput("to", f"is {form}, but {output.name} ends as {suffixes[output.suffix]} does")
    require(form)
    policy = _policy(options.run, options.checkpoint, options.trust)
    draft = output.with_name(f"{output.stem}.new{FORMS.module(form).SUFFIX}")
    try:
        difference = export(policy, form, draft)
        draft.replace(output)
    except OSError as error:
        raise WrongInput("output", f"{output}: {error.strerror or error}") from None
    except ExportError as error:
        print(f"iwes_mpi.export: error: {form}: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        draft.unlink(missing_ok=True)
    acts = "the same actions" if policy.discrete or not difference else f"actions within {difference:.1g}"
    print(f"{one_line(output)}: {one_line(policy.about)}; checked: {acts}")
    return 0


def run() -> NoReturn:
    """Run the program on this process's command line."""
    run_without_mpi("iwes_mpi.export", build_parser, main)


if __name__ == "__main__":
    run()
