import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msdv.config import SampleConfig
from msdv.errors import UsageError
from msdv.model.diffusion import denoise, make_scheduler
from msdv.model.windows import Length, Windows, length_of, windowed

T = torch.tensor(500)


def latents(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, frames, 3, 2, generator=torch.Generator().manual_seed(seed))


def of_frames(x: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
    """Sees each frame for itself, and which one it is."""
    return x.sin() + frames.view(1, 1, -1, 1, 1) * 0.01 + timestep * 1e-4


def of_neighbours(x: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
    """Sees the frames around each; beyond the ends nothing."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 1))
    return padded[:, :, :-2] * 0.3 + x * 0.4 + padded[:, :, 2:] * 0.3


LENGTHS = [
    Length(5, 2),
    Length(5, 4),
    Length(2, 1),
    Length(8, 3, loop=True),
    Length(5, 2, loop=True),
    Length(None, 4, loop=True),
]


@pytest.mark.parametrize("length", [*LENGTHS, Length(loop=True), Length(), Length(30, 10), Length(30, 10, loop=True)])
@pytest.mark.parametrize("frames", [1, 2, 9, 23])
def test_what_sees_each_frame_for_itself_says_the_same_in_windows(length: Length, frames: int) -> None:
    x, windows = latents(frames), Windows(of_frames, length)
    index = torch.arange(frames) + 7
    for _ in range(5):
        assert torch.equal(windows(x, T, index), of_frames(x, T, index))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("frames", [9, 24, 61])
def test_weights_add_up_to_one_and_all_frames_are_seen(length: Length, frames: int) -> None:
    borders = set()
    for step in range(12):
        starts = length.starts(frames, step)
        total, shares = torch.zeros(frames), []
        for start in starts:
            weights = length.weights(frames, start)
            assert weights.shape == (length.together(frames),) and (weights > 0).all() and (weights <= 1).all()
            index = (start + torch.arange(len(weights))) % frames
            assert length.loop or start + len(weights) <= frames
            total.index_add_(0, index, weights)
            shares.append((index, weights))
        assert (total > 0).all()
        sums = sum(torch.zeros(frames).index_add(0, index, w / total[index]) for index, w in shares)
        torch.testing.assert_close(sums, torch.ones(frames))
        borders.add(tuple(starts))
    assert len(borders) > 1 or length == Length(5, 4) or length == Length(2, 1)  # they move


def test_windows_that_stand_as_planned_overlap_by_what_was_asked() -> None:
    length = Length(25, 8)
    assert length.starts(59, 0) == [0, 17, 34]
    first, second = length.weights(59, 0), length.weights(59, 17)
    torch.testing.assert_close(first[17:] + second[:8], torch.ones(8))
    assert (first[:17] == 1).all() and (second[8:17] == 1).all()
    assert second[:8].diff().gt(0).all() and second[0] < 0.05
    for step in range(20):
        starts = length.starts(360, step)
        assert starts[0] == 0 and starts[-1] == 335 and max(torch.tensor(starts).diff()) <= 17
        assert starts == length.starts(360, step)


def test_no_frame_is_always_at_a_border() -> None:
    seen = torch.zeros(360)
    for step in range(15):
        for start in Length(25, 8).starts(360, step):
            seen[start] += 1
    assert seen[1:335].max() <= 3


def test_a_window_that_holds_all_frames_is_none() -> None:
    assert windowed(of_frames, Length(25, 8), 25) is of_frames
    assert windowed(of_frames, Length(), 1000) is of_frames
    assert isinstance(windowed(of_frames, Length(25, 8), 26), Windows)
    assert isinstance(windowed(of_frames, Length(loop=True), 5), Windows)


def test_a_loop_has_no_beginning() -> None:
    """Frames turned round by the distance of two windows give the same, turned round."""
    length = Length(8, 2, loop=True)
    x, frames = latents(24), torch.arange(24)
    plain = Windows(of_neighbours, length)(x, T, frames)
    turned = Windows(of_neighbours, length)(x.roll(6, 2), T, frames)
    torch.testing.assert_close(turned.roll(-6, 2), plain)
    # and what is at the border sees over it: but for the two ends of a window, as if there were none
    circle = of_neighbours(torch.cat([x[:, :, -1:], x, x[:, :, :1]], dim=2), T, frames)[:, :, 1:-1]
    error = (plain - circle).abs().amax((0, 1, 3, 4))
    assert error[0] < 0.5 * (of_neighbours(x, T, frames) - circle).abs().amax((0, 1, 3, 4))[0]


def test_one_window_round_a_loop_is_cut_elsewhere_each_time() -> None:
    cuts = []

    def prediction(x: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        cuts.append(int(frames[0]))
        return of_neighbours(x, timestep, frames)

    windows = Windows(prediction, Length(loop=True))
    for _ in range(10):
        windows(latents(30), T, torch.arange(30))
    assert len(set(cuts)) == 10
    assert max(torch.tensor(sorted(cuts)).diff()) <= 6


class Live(TorchDispatchMode):
    """The most bytes of tensors alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known:
                self._add(t.untyped_storage().nbytes())
                weakref.finalize(t.untyped_storage(), self._add, -t.untyped_storage().nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def test_memory_does_not_grow_with_the_frames() -> None:
    wide = torch.randn(4, 400, generator=torch.Generator().manual_seed(0))

    def heavy(x: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        return torch.einsum("bcfhw,ck->bkfhw", x, wide).relu().mean(1, keepdim=True).expand_as(x)

    def most(frames: int, length: Length) -> int:
        noise = latents(frames)
        gc.collect()
        with Live() as live:
            denoise(windowed(heavy, length, frames), noise, scheduler=make_scheduler("ddim", {}), steps=2)
        return live.most

    in_windows = [most(frames, Length(16, 4)) for frames in (50, 400)]
    together = [most(frames, Length()) for frames in (50, 400)]
    per_frame = latents(1).nbytes
    assert in_windows[1] - in_windows[0] < 350 * per_frame * 10  # latents, and what the scheduler makes of them
    assert together[1] - together[0] > 350 * per_frame * 100


def config(**changes: object) -> SampleConfig:
    return SampleConfig.model_validate({"prompt": "sea", "out": "a.gif", **changes})


def test_what_the_options_mean() -> None:
    assert length_of(config()) == Length()
    assert length_of(config(window=25, frames=26)) == Length(25, 8)
    assert length_of(config(window=25, frames=25)) == Length(None, 8)
    assert length_of(config(window=2)) == Length(2, 1)
    assert length_of(config(window=25, overlap=24, loop=True)) == Length(25, 24, loop=True)
    assert length_of(config(loop=True)) == Length(None, 8, loop=True)
    assert length_of(config(loop=True, overlap=3)) == Length(None, 3, loop=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": 3}, "--overlap 3: there are no windows to overlap: add --window, or leave it out"),
        (
            {"window": 25, "overlap": 25},
            "--overlap 25: windows of 25 frames can share 24 at most: lower it",
        ),
        ({"window": 2, "overlap": 900}, "--overlap 900: windows of 2 frames can share 1 at most: lower it"),
        (
            {"loop": True, "continue_from": "a.mp4"},
            "--loop: a video that goes on with another can't lead back into itself: leave --continue out",
        ),
    ],
)
def test_options_that_cannot_be_meant(changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        length_of(config(**changes))
    assert str(caught.value) == words


@pytest.mark.parametrize("changes", [{"window": 1}, {"window": 1025}, {"window": 5, "overlap": 0}])
def test_numbers_out_of_range(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"window|overlap"):
        config(**changes)
