from dataclasses import replace

import pytest
import torch

from msdv.model.job import Job
from msdv.model.known import KNOWN, Architecture
from msdv.model.memory import CARD_CONTEXT
from msdv.model.plan import Planner
from msdv.model.settings import Settings
from msdv.model.windows import Length
from tests.tiny import tiny_text_encoder, tiny_unet, tiny_vae

TINY = Architecture("tiny", dict(tiny_unet().config), dict(tiny_vae().config), tiny_text_encoder().config.to_dict())
JOB = Job(TINY, frames=16, height=128, width=128, dtype=torch.float16)


@pytest.fixture(scope="module")
def planner() -> Planner:
    """Rehearses all notches once; tests set its budget."""
    planner = Planner(JOB, budget=1)
    for notch in planner.notches:
        planner.estimate(notch)
    return planner


def test_notches_go_from_much_to_little_memory(planner: Planner) -> None:
    for offload in (False, True):
        notches = [notch for notch in planner.notches if notch.offload_optim == offload]
        peaks = [planner.estimate(notch).peak_bytes for notch in notches]
        assert peaks == sorted(peaks, reverse=True)
        assert len(set(peaks)) == len(peaks)


def test_all_parts_are_told(planner: Planner) -> None:
    estimate = planner.estimate(Settings())
    assert sum(estimate.parts.values()) == estimate.peak_bytes
    assert {"frozen UNet weights", "optimizer", "kept for the backward pass", "CUDA"} <= set(estimate.parts)
    assert estimate.parts["CUDA"] == CARD_CONTEXT


def test_with_room_nothing_is_saved(planner: Planner) -> None:
    planner.budget = planner.estimate(Settings()).peak_bytes
    assert planner.choose() == Settings()


@pytest.mark.slow
def test_less_room_saves_more_and_always_fits(planner: Planner) -> None:
    most, least = (planner.estimate(planner.notches[i]).peak_bytes for i in (0, -1))
    seconds = []
    for share in (0.9, 0.5, 0.2, 0.0):
        planner.budget = int(least + share * (most - least))
        estimate = planner.estimate(planner.choose())
        assert estimate.peak_bytes <= planner.budget
        seconds.append(estimate.work.seconds)
    assert seconds[0] < seconds[-1]


def test_no_more_is_computed_again_than_must_be() -> None:
    planner = Planner(JOB, budget=1, fixed={"offload_optim": True, "chunk_frames": 0, "host_checkpoints": False})
    none, full = (planner.estimate(Settings(c, offload_optim=True)) for c in ("none", "full"))
    planner.budget = (none.peak_bytes + full.peak_bytes) // 2
    chosen = planner.choose()
    assert chosen.checkpointing == "partial"
    assert chosen.checkpoint_units is not None and 0 < chosen.checkpoint_units < len(planner.units())
    assert planner.estimate(chosen).peak_bytes <= planner.budget
    assert none.work.flops < planner.estimate(chosen).work.flops < full.work.flops
    fewer = Settings("partial", chosen.checkpoint_units // 2, offload_optim=True)
    assert planner.estimate(fewer).peak_bytes > planner.budget


def test_where_nothing_fits_it_says_so(planner: Planner) -> None:
    planner.budget = 2 * CARD_CONTEXT // 3
    plan = planner.plan()
    assert not plan.fits
    assert plan.chosen.settings == planner.notches[-1]
    assert plan.most_frames["with these settings"] == 0


def test_what_was_given_stays() -> None:
    planner = Planner(JOB, budget=1, fixed={"checkpointing": "full", "offload_optim": False})
    assert {notch.checkpointing for notch in planner.notches} == {"full"}
    assert not any(notch.offload_optim for notch in planner.notches)


@pytest.mark.parametrize("sampling", [False, True])
def test_as_many_frames_fit_as_it_says(sampling: bool) -> None:
    job = Job(TINY, frames=8, height=128, width=128, dtype=torch.float16)
    planner = Planner(job, budget=CARD_CONTEXT + 120_000_000, sampling=sampling)
    settings = Settings() if sampling else Settings("full", offload_optim=True)
    most = planner.most_frames(settings)
    assert most > 8
    assert planner.estimate(settings, most).peak_bytes <= planner.budget  # type: ignore[operator]
    assert planner.estimate(settings, most + 1 + most // 10).peak_bytes > planner.budget  # type: ignore[operator]


def test_a_sample_is_worked_off_in_chunks_where_it_must_be() -> None:
    planner = Planner(replace(JOB, frames=64), budget=1, sampling=True)
    none, eight = (planner.estimate(notch).peak_bytes for notch in planner.notches[:2])
    planner.budget = (none + eight) // 2
    assert planner.choose().chunk_frames == 10


def test_windows_count_as_what_is_seen_together() -> None:
    windows = replace(JOB, frames=500, length=Length(16, 4))
    planner = Planner(windows, budget=1, sampling=True)
    assert [notch.chunk_frames for notch in planner.notches] == [0, 10, 2, 2]
    in_windows, together = planner.estimate(Settings()), Planner(JOB, budget=1, sampling=True).estimate(Settings())
    assert together.peak_bytes < in_windows.peak_bytes < 1.15 * together.peak_bytes
    assert planner.job.frames == 500  # it is never the planner that chooses windows


@pytest.mark.parametrize(("frames", "most"), [(25, 4.0), (49, 6.0)])
def test_stable_diffusion_trains_on_a_small_card(frames: int, most: float) -> None:
    job = Job(KNOWN["sd-1.5"], frames, 512, 512, torch.float16)
    planner = Planner(job, budget=None)
    settings = Settings("full", chunk_frames=8, offload_optim=True, host_checkpoints=True)
    assert planner.estimate(settings).stage.device.size <= most * 2**30
