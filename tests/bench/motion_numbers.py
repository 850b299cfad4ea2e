"""The numbers of docs/how-to/motion.md: what the measures of motion say of videos of which it is known.

    python tests/bench/motion_numbers.py

Prints the table in markdown. It counts nothing that depends on the machine.
"""

from __future__ import annotations

import numpy as np

from msdv.data.moving import make_reference, measure
from msdv.data.synthetic import clips, render
from msdv.verdict import NAMES, mean_numbers

SKIES, FRAMES, FPS, SEED = 8, 25, 5.0, 1
NOISE = 1.5  # levels of 255, in each pixel


def main() -> None:
    """Measure and print."""
    skies = [sky for sky, _ in clips(SKIES, SEED)]
    real = [render(sky, FRAMES, fps=FPS) for sky in skies]
    slow = [render(sky, FRAMES, fps=2 * FPS) for sky in skies]
    rng = np.random.default_rng(0)
    noisy = [
        (clip[:1] + NOISE * rng.standard_normal(clip.shape)).round().clip(0, 255).astype(np.uint8) for clip in real
    ]
    unrelated = [np.stack([real[(turn + frame) % SKIES][frame] for frame in range(FRAMES)]) for turn in range(SKIES)]
    regions = make_reference(real).regions
    columns = {
        f"{SKIES} clips": real,
        "half as fast": slow,
        f"one picture, noise of {NOISE:g}": noisy,
        "independent frames": unrelated,
    }
    numbers = [mean_numbers(measure(clip, regions) for clip in several).as_dict() for several in columns.values()]
    print(f"| number | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name in NAMES:
        if any(name in found for found in numbers):
            cells = [f"{found[name]:.2g}" if name in found else "" for found in numbers]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
