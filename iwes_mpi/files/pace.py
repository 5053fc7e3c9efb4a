"""When to write checkpoints: after every so many iterations, or as often as they are cheap."""

SHARE = 0.01  # of the time, which automatic checkpoints may cost
_NEWEST = 0.3  # what the newest cost counts in the moving average


class Pace:
    """Decides after each iteration whether a checkpoint is due.

    Parameters
    ----------
    every : int
        Iterations from one checkpoint to the next; 0 to write one as soon as it costs less than `SHARE` of the time
        since the last one.
    longest : float
        Seconds after which one is due in any case.
    now : float
        When the last one was written, or the run was begun; s, by any clock.
    """

    def __init__(self, every: int, longest: float, now: float):
        self._every, self._longest, self._last = every, longest, now
        self._cost: float | None = None  # s, exponential moving average; None: not known yet

    def due(self, iteration: int, now: float) -> bool:
        """Whether to write a checkpoint now, after so many iterations."""
        since = now - self._last
        if since >= self._longest:
            return True
        if self._every:
            return iteration % self._every == 0
        return self._cost is None or self._cost <= SHARE * since

    def wrote(self, begin: float, end: float) -> None:
        """Note that one was written between these times."""
        cost = end - begin
        self._cost = cost if self._cost is None else self._cost + _NEWEST * (cost - self._cost)
        self._last = end
