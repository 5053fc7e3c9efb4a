"""Text of unknown origin, made fit for a terminal.

Names of files, attributes of a log and messages of an environment's exceptions may hold anything, sequences that a
terminal obeys included. What prints such text passes it through here.
"""

_LONGEST = 4000  # characters of a line, so that nobody has to scroll past a file's worth of them


def printable(text: object) -> str:
    """Text in which every character that is not shown is spelled out, as in ``\\x1b``; lines stay lines."""
    lines = str(text).split("\n")
    return "\n".join("".join(map(_shown, line.expandtabs())) for line in lines)


def one_line(text: object) -> str:
    """As `printable`, in one line of reasonable length: each run of white space becomes a space."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
