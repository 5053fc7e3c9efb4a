"""A curve in text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 1e300  # differences of numbers below are finite


def si(value: float) -> str:
    """A number in four characters or so: 950, 12.5k, 3.2M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def dots(x: NDArray[np.float64], y: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.bool_]:
    """A curve as dots, bool (rows, columns), the top row first; all of x and y are in view.

    Columns with several points show their whole range; neighboring points are joined by straight lines.
    """
    canvas = np.zeros((rows, columns), dtype=bool)
    if not x.size:
        return canvas
    width, height = max(np.ptp(x), 1e-300), max(np.ptp(y), 1e-300)
    across = np.rint((x - x.min()) / width * (columns - 1)).astype(int)
    up = (y - y.min()) / height * (rows - 1) if np.ptp(y) > 0 else np.full(y.size, (rows - 1) / 2)
    for i in range(max(x.size - 1, 1)):
        j = min(i + 1, x.size - 1)
        steps = 2 * max(abs(across[j] - across[i]), round(abs(up[j] - up[i]))) + 1
        line = np.linspace(0, 1, steps)
        c = np.rint(across[i] + line * (across[j] - across[i])).astype(int)
        r = np.rint(up[i] + line * (up[j] - up[i])).astype(int)
        canvas[rows - 1 - r, c] = True
    return canvas


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most the smallest and largest y of each of `bins` stretches of x, in order."""
    if x.size <= 4 * bins:
        return x, y
    edges = np.linspace(x[0], x[-1], bins + 1)[1:-1]
    kept: list[int] = []
    for part in np.split(np.arange(x.size), np.searchsorted(x, edges)):
        if part.size:
            kept += sorted({int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])})
    return x[kept], y[kept]


def text_plot(
    x: NDArray[np.float64], y: NDArray[np.float64], width: int, height: int, ascii_only: bool = False
) -> list[str]:
    """A curve with labeled axes in `height` lines of at most `width` characters.

    Parameters
    ----------
    x, y : float64 (points,)
        x increasing; points where either is not finite, or close to what float64 can hold, are left out.
    width, height : int
    ascii_only : bool
        Stars, not Braille patterns (eight dots a character).
    """
    drawn = (np.abs(x) < _LARGEST) & (np.abs(y) < _LARGEST)
    x, y = x[drawn], y[drawn]
    if not x.size:
        return ["(nothing to draw yet)"] + [""] * (height - 1)
    rows = max(height - 2, 1)
    low, high = float(y.min()), float(y.max())
    labels = (
        {rows - 1: si(low), 0: si(high), (rows - 1) // 2: si((low + high) / 2)} if high > low else {rows // 2: si(low)}
    )
    margin = max(map(len, labels.values())) + 1
    columns = max(width - margin - 1, 4)
    if ascii_only:
        marks = dots(*_thin(x, y, columns), columns, rows)
        body = ["".join("*" if mark else " " for mark in row) for row in marks]
    else:
        marks = dots(*_thin(x, y, 2 * columns), 2 * columns, 4 * rows)
        # A Braille pattern is U+2800 plus a bit per dot, numbered down the left column, then the right one, with the
        # lowest row's two last.
        bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
        codes = (marks.reshape(rows, 4, columns, 2) * bits[None, :, None, :]).sum(axis=(1, 3))
        body = ["".join(chr(0x2800 + int(code)) if code else " " for code in row) for row in codes]
    bar, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    lines = [f"{labels.get(i, ''):>{margin}}{bar}{row}".rstrip() for i, row in enumerate(body)]
    begin, end = si(float(x[0])), si(float(x[-1]))
    lines.append(" " * margin + corner + dash * columns)
    lines.append(" " * (margin + 1) + begin + f"{end:>{max(columns - len(begin), 0)}}")
    return lines[-height:]
