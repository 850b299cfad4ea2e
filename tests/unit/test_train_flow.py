"""train --noise flow: the clips' flow is found when it is needed, once, and carries their noise."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from msdv.data.batches import generator_for
from msdv.data.cache import FOLDER, FlowCache, LatentCache
from msdv.training import Training
from tests.runs import settings


@pytest.fixture
def data(sky_frames: Path, tmp_path: Path) -> Path:
    """Frames with nothing cached."""
    return Path(shutil.copytree(sky_frames, tmp_path / "data", ignore=shutil.ignore_patterns(FOLDER)))


def kept(data: Path) -> dict[str, tuple[int, int]]:
    """Files in the cache, with what changes when they are written."""
    found = (data / FOLDER).glob("*.safetensors")
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found if "text-" not in path.name}


def test_flow_is_found_where_it_is_needed_and_nothing_is_computed_twice(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    assert Training(settings(tiny_base, data, tmp_path / "run")).motion is None
    latents = kept(data)
    assert len(latents) == 6
    assert not any(".flow." in name for name in latents)
    # Latents of older versions hold a motion of their own too, which nobody needs.
    old = sorted(latents)[0]
    save_file({**load_file(data / FOLDER / old), "row_velocity": torch.ones(4)}, data / FOLDER / old)
    latents = kept(data)
    training = Training(settings(tiny_base, data, tmp_path / "run", noise="flow"))
    both = kept(data)
    assert {name: both[name] for name in latents} == latents
    assert sum(".flow." in name for name in both) == 6
    assert training.motion is not None
    Training(settings(tiny_base, data, tmp_path / "run", noise="flow"))
    assert kept(data) == both


def test_what_clips_show_on_average_is_remembered(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    motion = Training(settings(tiny_base, data, tmp_path / "run", noise="flow")).motion
    assert motion is not None
    field = torch.tensor(motion.field)
    assert field.shape == (8, 8, 2)
    assert field[:3].norm(dim=-1).mean() > 4 * field[-1].norm(dim=-1).mean()  # the sky against the ground
    assert 0 <= motion.left <= 1
    flipped = Training(settings(tiny_base, data, tmp_path / "run", noise="flow", flip=True)).motion
    assert flipped is not None
    assert (flipped.field, flipped.left) == (motion.field, 0.5)


def test_noise_flows_for_a_share_of_the_clips(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    def alike(share: float) -> torch.Tensor:
        """Of each clip, how like the noise of its first and its second frame are."""
        training = Training(settings(tiny_base, data, tmp_path / "run", noise="flow", noise_share=share))
        found = []
        for number in range(12):
            batch, generator = training.batches.batch(number), generator_for("noise", 0, number)
            noise = training.draw_noise(batch, generator)
            assert torch.equal(noise, training.draw_noise(batch, generator_for("noise", 0, number)))
            assert noise.std().item() == pytest.approx(1, abs=0.15)
            found.append((noise[:, :, 0] * noise[:, :, 1]).mean())
        return torch.stack(found)

    assert alike(0.0).abs().max() < 0.35  # of 64 values
    assert alike(1.0).min() > 0.2


def test_clips_in_which_nothing_moves_get_independent_noise(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (32, 32), "gray").save(tmp_path / "data" / name / f"{number}.png")
    training = Training(settings(tiny_base, tmp_path / "data", tmp_path / "run", noise="flow", noise_share=1.0))
    assert training.motion is None
    noise = training.draw_noise(training.batches.batch(0), torch.Generator().manual_seed(0))
    assert not torch.allclose(noise[:, :, 0], noise[:, :, 1])
    assert abs((noise[:, :, 0] * noise[:, :, 1]).mean().item()) < 0.35
    assert training.evaluate() == []  # too few clips to hold one out


def test_a_killed_search_leaves_what_is_done(
    tiny_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, done = FlowCache.measure, []

    def some(self: FlowCache, clip: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        measure(self, clip)  # type: ignore[arg-type]
        done.append(clip)

    monkeypatch.setattr(FlowCache, "measure", some)
    with pytest.raises(KeyboardInterrupt):
        Training(settings(tiny_base, data, tmp_path / "run", noise="flow"))
    before = {name: stamp for name, stamp in kept(data).items() if ".flow." in name}
    assert len(before) == 2
    monkeypatch.setattr(FlowCache, "measure", measure)
    monkeypatch.setattr(LatentCache, "encode", lambda *_: pytest.fail("encoded again"))
    Training(settings(tiny_base, data, tmp_path / "run", noise="flow"))
    assert before.items() <= kept(data).items()
