import numpy as np
import pytest

from msdv.sampling.grid import columns, grid_size, label_height, side_by_side, tile_at


def videos(count: int, height: int = 24, width: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, height, width, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize(("count", "across"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 3), (16, 4), (64, 8)])
def test_rows_and_columns_are_nearly_as_many(count: int, across: int) -> None:
    assert columns(count) == across


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_tile_has_the_pixels_of_its_video(count: int, labelled: bool) -> None:
    given = videos(count)
    labels = [str(n) for n in range(count)] if labelled else []
    grid = list(side_by_side(given, labels))
    assert [frame.shape for frame in grid] == [(*grid_size(count, 24, 40, labels=labelled), 3)] * 3
    for index, video in enumerate(given):
        rows, across = tile_at(index, count, 24, 40, labels=labelled)
        assert np.array_equal(np.stack([frame[rows, across] for frame in grid]), video)


def test_labels_stand_above_and_tell_apart() -> None:
    (frame, *_) = side_by_side(videos(2), ["7", "12"])
    strip = label_height(24, True)
    strips = [frame[:strip, tile_at(index, 2, 24, 40, labels=True)[1]] for index in range(2)]
    assert all(part.max() > 200 and part.min() < 50 for part in strips)
    assert not np.array_equal(*strips)


def test_numbers_from_0_to_1_stay_numbers() -> None:
    given = [np.random.default_rng(0).random((2, 8, 8, 3), np.float32) for _ in range(3)]
    frames = list(side_by_side(given))
    assert frames[0].dtype == np.float32
    assert frames[0].shape == (18, 18, 3)
    assert np.array_equal(frames[1][tile_at(2, 3, 8, 8, labels=False)], given[2][1])
    assert not frames[0][10:, 10:].any()


def test_videos_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(side_by_side([videos(1)[0], videos(1)[0][:2]]))
