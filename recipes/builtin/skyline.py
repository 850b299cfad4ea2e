"""Where sky and ground meet in a clip, and how far that line wanders."""

from __future__ import annotations

import numpy as np

BAND = (0.55, 0.86)  # rows, as shares of the height, between which every skyline runs
REACH = 4  # rows that a part's line may be away from the whole clip's
CLIMB = 3  # rows that the line may climb from a column to the next
DARK = 24.0  # levels: differences count in proportion to brightness above, as the eye has it, and as they are below


def skyline_shift(frames: np.ndarray, parts: int = 4) -> float:
    """How many rows the skyline of a clip (f, h, w, 3) is away from where it was at first: the mean over columns, in
    the worst of `parts` parts of the clip. Each part is averaged over its frames: clouds blur and land does not."""
    means = np.array([part.mean(0) for part in np.array_split(frames, parts)])
    whole = _find_line(_edges(means.mean(0)))
    lines = []
    for mean in means:
        edges = _edges(mean)
        far = np.abs(np.arange(len(edges))[:, None] - whole) > REACH
        lines.append(_find_line(np.where(far, -1e3, edges)))
    away = np.abs(np.array(lines) - lines[0]).mean(1)
    return float(away.max())


def find_skyline(picture: np.ndarray) -> np.ndarray:
    """The row of the ground's upper edge in each column (w,) of a picture (h, w, 3): of all lines from the left to the
    right, the one along which brightness and colour change most."""
    return round(BAND[0] * len(picture)) + _find_line(_edges(picture))


def _edges(picture: np.ndarray) -> np.ndarray:
    """How much changes from the row above to the row below, within BAND: (rows, w)."""
    first, last = (round(share * len(picture)) for share in BAND)
    band = np.log1p(picture[first - 1 : last + 1].astype(np.float32) / DARK)
    edges = np.abs(band[2:] - band[:-2]).sum(-1)
    # A strong edge elsewhere, such as the sun's, must not outweigh many weaker ones along the line.
    return np.asarray(np.minimum(edges, 1.5 * np.median(edges.max(0))))


def _find_line(edges: np.ndarray) -> np.ndarray:
    """The line of the most edge, by dynamic programming: a row for each column, (w,)."""
    rows, columns = edges.shape
    climbs = np.arange(-CLIMB, CLIMB + 1)
    price = 0.02 * edges.max() * np.abs(climbs)[:, None]  # nearly as good is good enough to go straight on
    best, came = edges[:, 0].copy(), np.zeros((columns, rows), int)
    for column in range(1, columns):
        padded = np.pad(best, CLIMB, constant_values=-np.inf)
        before = np.stack([padded[CLIMB + climb : CLIMB + climb + rows] for climb in climbs]) - price
        choice = before.argmax(0)
        came[column] = np.arange(rows) + climbs[choice]
        best = before[choice, np.arange(rows)] + edges[:, column]
    line = np.empty(columns, int)
    line[-1] = best.argmax()
    for column in range(columns - 1, 0, -1):
        line[column - 1] = came[column, line[column]]
    return line
