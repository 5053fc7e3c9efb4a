"""Wrong input: the one exception that every room raises for it."""

from iwes_mpi.settings.printable import one_line


class WrongInput(ValueError):
    """A setting and one sentence on what is wrong with it.

    Texts name other settings in backquotes, such as `n_pairs`. Whoever prints an error spells them as its reader
    knows them: a command line as flags (`command_line.ArgumentParser.describe`).

    Parameters
    ----------
    setting : str
        A setting's name such as ``n_pairs``, or a file or argument.
    problem : str
        What is wrong, with the offending value.
    source : str
        Where the setting was read, such as a file; empty if that goes without saying.
    detail : str
        Lines to print below the sentence, such as where the user's own code failed.
    """

    def __init__(self, setting: str, problem: str, source: str = "", detail: str = ""):
        self.setting, self.problem, self.source = one_line(setting), one_line(problem), one_line(source)
        self.detail = detail
        super().__init__(self.setting, self.problem, self.source, detail)  # so that it can travel between processes

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.setting, self.problem) if part)
