"""Clips that show the same, found by perceptual hashes of a few of their frames.

A copy is found if it was re-encoded, scaled, made a little brighter or darker, or had its ends trimmed; not if it was
mirrored, cropped to another part, or played at another speed. Clips that show next to nothing (a clear sky, black) are
duplicates of nothing, for there is nothing to tell them apart by.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

_HASH = re.compile("[0-9a-fA-F]{16}")
_WAVES = 8  # of a cosine transform, each way
_CLEAR = 0.3  # levels: a wave weaker than that may be rounding or noise, and its sign an accident
_FEWEST = 40  # clear waves, of 63
# Bits of 64, on average over the frames of a clip. Copies of synthetic skies (JPEG of quality 20 at 96 pixels, a fifth
# trimmed off each end) were 2 to 5 apart, different skies 14 or more.
_ALIKE = 5.5
_CANDIDATE = 12  # bits: what the middle frame of a copy may be off
_CHUNK = 512  # clips compared with all others at once: 512 x 5,000 numbers are 10 MB


def find_duplicates(hashes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Clips that nearly equal an earlier one (by the order of `hashes`), each with that one, which is never a duplicate
    itself.

    `hashes` has those of `Scores.hashes` for each clip: 16 hex digits each, in the order of the frames. What is not
    that, as an empty string, is a frame that nothing is known of; a clip that is half made of them equals nothing.
    """
    names = list(hashes)
    signs = _signs([hashes[name] for name in names])
    known = np.asarray(signs.any(-1))  # (clips, places)
    usable = np.flatnonzero(2 * known.sum(1) >= np.array([max(1, len(hashes[name])) for name in names]))
    middle = _middles(signs, known)
    originals = np.empty(0, int)
    found: dict[int, int] = {}
    for start in range(0, len(usable), _CHUNK):
        rows = usable[start : start + _CHUNK]
        columns = np.concatenate([originals, rows])
        later, earlier = _candidates(signs, middle, rows, columns)
        apart = _distances(signs, known, later, earlier)
        alike = apart <= _ALIKE
        later, earlier, apart = later[alike], earlier[alike], apart[alike]
        for index in np.lexsort((earlier, apart, later)):
            if int(later[index]) not in found and int(earlier[index]) not in found:
                found[int(later[index])] = int(earlier[index])
        originals = np.array([index for index in columns if int(index) not in found], int)
    return {names[later]: names[found[later]] for later in sorted(found)}


def _signs(clips: Sequence[Sequence[str]]) -> np.ndarray:
    """Bits as -1 and 1, 0 where there is no hash. (clips, places, 64)

    The product of two is 64 less twice the bits that differ.
    """
    places = max((len(clip) for clip in clips), default=0)
    values = np.zeros((len(clips), max(1, places), 64), np.float32)
    for row, clip in enumerate(clips):
        for place, text in enumerate(clip):
            if isinstance(text, str) and _HASH.fullmatch(text):
                values[row, place] = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) * 2.0 - 1
    return values


def _middles(signs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Of each clip the hash nearest to its middle. (clips, 64)"""
    count = np.maximum(1, known.cumsum(1)[:, -1:])
    # The middle one of those known.
    place = (known & (known.cumsum(1) == (count + 1) // 2)).argmax(1)
    return np.asarray(signs[np.arange(len(signs)), place])


def _candidates(
    signs: np.ndarray, middle: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (later, earlier) of clips where the middle of one is somewhere in the other."""
    best = np.full((len(rows), len(columns)), -64, np.float32)
    for place in range(signs.shape[1]):
        np.maximum(best, middle[rows] @ signs[columns, place].T, out=best)
        np.maximum(best, signs[rows, place] @ middle[columns].T, out=best)
    best[rows[:, None] <= columns[None]] = -64
    row, column = np.nonzero(best >= 64 - 2 * _CANDIDATE)
    return rows[row], columns[column]


def _distances(signs: np.ndarray, known: np.ndarray, later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Bits between the frames of one clip and what is most like them in the other: of the two ways to ask, the one that
    fits better, for a trimmed copy has nothing like the ends of the other. (pairs,)
    """
    result = np.empty(len(later), np.float32)
    for start in range(0, len(later), 8 * _CHUNK):
        part = slice(start, start + 8 * _CHUNK)
        a, b = later[part], earlier[part]
        apart = (64 - signs[a] @ signs[b].transpose(0, 2, 1)) / 2  # (pairs, places of a, places of b)
        one = np.average(apart.min(2), axis=1, weights=known[a])
        other = np.average(apart.min(1), axis=1, weights=known[b])
        result[part] = np.minimum(one, other)
    return result


def hash_picture(luma: np.ndarray) -> str:
    """64 bits in hex of a picture (h, w) uint8: the signs of its lowest waves, which survive a codec, scaling and a
    change of light. Empty if too few of them are clear.

    After Zauner 2010, "Implementation and benchmarking of perceptual image hash functions" (its DCT hash), with signs
    in place of the median: the brightest wave has no say in the others.
    """
    height, width = luma.shape
    waves = _cosines(height) @ luma.astype(np.float32) @ _cosines(width).T
    waves[0, 0] = 0
    if (np.abs(waves) > _CLEAR).sum() < _FEWEST:
        return ""
    return np.packbits((waves > 0).reshape(-1)).tobytes().hex()


@functools.lru_cache(16)
def _cosines(length: int) -> np.ndarray:
    """The first rows of an orthogonal cosine transform, scaled to levels: a wave of amplitude 1 gives 1. (8, length)"""
    place = (np.arange(length) + 0.5) / length
    return np.asarray(np.cos(np.pi * np.arange(_WAVES)[:, None] * place) * 2 / length, np.float32)
