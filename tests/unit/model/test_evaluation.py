import itertools

import pytest
import torch

from msdv.errors import MsdvError
from msdv.model.diffusion import TrainingSchedule
from msdv.model.evaluation import HeldOutLoss, held_out_loss
from msdv.model.inflate import inflate
from msdv.model.objective import flicker
from tests.tiny import SCHEDULER, tiny_unet


def items(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 3, 8, 8)
    return [
        (
            torch.randn(shape, generator=generator),
            torch.randn(1, 5, 32, generator=generator),
            torch.randn(shape, generator=generator),
        )
        for _ in range(count)
    ]


def test_untrained_layers_change_nothing_and_ruined_ones_are_seen() -> None:
    model, schedule = inflate(tiny_unet()), TrainingSchedule(SCHEDULER)
    clips = items(3)
    result = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent")
    assert result.on == pytest.approx(result.off, rel=1e-4)
    assert result.flicker_on == pytest.approx(result.flicker_off, rel=1e-4)
    assert (result.clips, result.levels) == (3, 4)
    with torch.no_grad():
        model.unet.conv_out.temporal_conv.weight.mul_(3)
    ruined = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent")
    assert (ruined.off, ruined.flicker_off) == (result.off, result.flicker_off)
    assert ruined.gain < 0
    assert ruined.steadiness < 0
    known = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent", known=result)
    assert known == ruined


def test_a_loss_that_is_not_finite_is_no_result() -> None:
    model, schedule = inflate(tiny_unet()), TrainingSchedule(SCHEDULER)
    with torch.no_grad():
        model.unet.conv_out.temporal_conv.bias.fill_(float("nan"))
    with pytest.raises(MsdvError, match="held-out clips is not finite with the temporal layers: try --bf16"):
        held_out_loss(model, schedule, iter(items(1)), levels=1, noise_kind="independent")


def test_the_same_noise_levels_are_looked_at_each_time_and_cover_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    model, schedule = inflate(tiny_unet()), TrainingSchedule(SCHEDULER)
    seen: list[list[int]] = []
    real = schedule.add_noise

    def watched(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen[-1] += timesteps.tolist()
        return real(latents, noise, timesteps)

    monkeypatch.setattr(schedule, "add_noise", watched)
    state = torch.random.get_rng_state()
    for _ in range(2):
        seen.append([])
        held_out_loss(model, schedule, iter(items(4)), levels=2, noise_kind="independent")
    assert seen[0] == seen[1]
    for number in range(4):  # of each clip, one in each half
        low, high = seen[0][2 * number : 2 * number + 2]
        assert 0 <= low < 500 <= high < 1000
    assert max(b - a for a, b in itertools.pairwise(sorted([0, *seen[0], 1000]))) < 300
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_result_in_words_and_numbers() -> None:
    loss = HeldOutLoss(on=0.75, off=1.0, flicker_on=0.03, flicker_off=0.02, noise="flow", clips=3, levels=4)
    assert loss.gain == 0.25
    assert str(loss) == (
        "loss on 3 clips, flow noise: 0.7500 with temporal layers, 1.0000 without: 25.0% lower; "
        "its flicker 0.0300, 0.0200 without: 50.0% higher"
    )
    assert loss.as_dict()["gain"] == 0.25


def test_flicker_is_what_changes_from_frame_to_frame() -> None:
    error = torch.tensor([2.0, 2.0, 5.0]).view(1, 1, 3, 1, 1)
    assert flicker(error).tolist() == [4.5]
    assert flicker(error, torch.tensor([[True, True, False]])).tolist() == [9.0]
