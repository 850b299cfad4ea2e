import io
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from msdv.data.duplicates import find_duplicates, hash_picture
from msdv.data.scores import ClipMeter
from msdv.data.synthetic import CLOUDS, Sky, render, sample_sky

DAY = Sky("day", "puffy", "hills", "right", "mid", seed=5)


def hashes_of(frames: np.ndarray) -> tuple[str, ...]:
    meter = ClipMeter()
    for frame in frames:
        image = Image.fromarray(frame).convert("YCbCr")
        scale = 64 / min(image.size)
        meter.add(np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.BOX)))
    return meter.result().hashes


def copy(frames: np.ndarray, size: int = 80, quality: int = 25, light: float = 1.0) -> np.ndarray:
    """Scaled, brightened and through a lossy codec."""
    result = []
    for frame in frames:
        image = Image.fromarray(np.clip(frame * light, 0, 255).astype(np.uint8)).resize((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        result.append(np.asarray(Image.open(buffer).convert("RGB")))
    return np.stack(result)


def random_hashes(rng: np.random.Generator) -> list[str]:
    return [rng.bytes(8).hex() for _ in range(9)]


@pytest.fixture(scope="module")
def skies() -> list[np.ndarray]:
    rng = random.Random(11)
    return [render(sample_sky(rng), 30, 96, fps=3) for _ in range(8)]


@pytest.fixture(scope="module")
def originals(skies: list[np.ndarray]) -> dict[str, tuple[str, ...]]:
    return {f"sky {index}": hashes_of(sky) for index, sky in enumerate(skies)}


def test_different_skies_are_different(originals: dict[str, tuple[str, ...]]) -> None:
    others = {clouds: hashes_of(render(replace(DAY, clouds=clouds), 20, 96)) for clouds in CLOUDS}
    seeds = {f"seed {seed}": hashes_of(render(replace(DAY, seed=seed), 20, 96)) for seed in range(8)}
    wind = {"left": hashes_of(render(replace(DAY, wind="left"), 20, 96))}
    seeds.pop("seed 5")  # is DAY, and so is "puffy"
    assert find_duplicates({**originals, **others, **seeds, **wind}) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: copy(clip),
        lambda clip: copy(clip, size=160, quality=60),
        lambda clip: copy(clip, light=1.08),
        lambda clip: copy(clip, light=0.9),
        lambda clip: copy(clip[5:], quality=50),
        lambda clip: copy(clip[:-6], quality=50),
        lambda clip: copy(clip[5:-5], quality=50),
        lambda clip: clip[::2],
    ],
    ids=["codec", "size", "brighter", "darker", "head", "tail", "both ends", "half the frames"],
)
def test_copies_are_found(skies: list[np.ndarray], originals: dict[str, tuple[str, ...]], change) -> None:
    copies = {f"copy {index}": hashes_of(change(sky)) for index, sky in enumerate(skies)}
    expected = {f"copy {index}": f"sky {index}" for index in range(len(skies))}
    assert find_duplicates({**originals, **copies}) == expected


def test_the_earlier_one_is_the_original() -> None:
    a, b = random_hashes(np.random.default_rng(0)), random_hashes(np.random.default_rng(1))
    assert find_duplicates({"z": a, "b": b, "y": a, "x": a, "c": b}) == {"y": "z", "x": "z", "c": "b"}


def test_no_duplicate_of_a_duplicate() -> None:
    """Of a chain in which only neighbours are alike, the second goes and the third stays."""

    def with_bits(count: int) -> list[str]:
        return [f"{(1 << count) - 1:016x}"] * 9

    assert find_duplicates({"0": with_bits(0), "5": with_bits(5), "10": with_bits(10)}) == {"5": "0"}
    assert find_duplicates({"0": with_bits(0), "7": with_bits(7)}) == {}


def pictures() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)
    return {
        "black": np.full((64, 64), 16.0),
        "white": np.full((64, 64), 235.0),
        "clear sky": 100 + y,
        "sky and sea": np.where(y > 45, 60, 160),
        "noise": 20 + 4 * rng.standard_normal((64, 64)),
        "glow": 100 + 100 * np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / 400),
    }


@pytest.mark.parametrize("name", pictures())
def test_next_to_nothing_is_no_duplicate(name: str) -> None:
    levels = pictures()[name]
    rng = np.random.default_rng(1)
    clips = {}
    for clip in range(5):
        noisy = levels + rng.standard_normal(levels.shape)
        clips[str(clip)] = [hash_picture(np.clip(noisy.round(), 0, 255).astype(np.uint8))] * 9
    assert find_duplicates(clips) == {}
    assert set(clips["0"]) == {""}


def test_half_a_clip_of_nothing() -> None:
    """An intro that many clips share, and then darkness, says nothing; a dark frame or two do no harm."""
    a = random_hashes(np.random.default_rng(0))
    assert find_duplicates({"a": [*a[:3], *[""] * 6], "b": [*a[:3], *[""] * 6]}) == {}
    assert find_duplicates({"a": ["", *a[1:]], "b": ["", *a[1:]]}) == {"b": "a"}


def test_odd_values() -> None:
    a = random_hashes(np.random.default_rng(0))
    assert find_duplicates({}) == {}
    assert find_duplicates({"a": [], "b": []}) == {}
    assert find_duplicates({"a": ["zz", "12", "0x"], "b": ["zz", "12", "0x"], "c": a, "d": [a[0]]}) == {"d": "c"}
    assert find_duplicates({"a": a, "b": [text.upper() for text in a]}) == {"b": "a"}


def test_thousands_of_clips() -> None:
    rng = np.random.default_rng(0)
    clips = {str(index): random_hashes(rng) for index in range(2000)}
    clips |= {f"copy of {index}": clips[str(index)] for index in range(0, 2000, 100)}
    assert find_duplicates(clips) == {f"copy of {index}": str(index) for index in range(0, 2000, 100)}
