import pytest
import torch

from msdv.model.diffusion import TrainingSchedule
from msdv.model.evaluation import HeldOutLoss, held_out_loss
from msdv.model.inflate import inflate
from tests.tiny import SCHEDULER, tiny_unet


def items(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 3, 8, 8)
    return [
        (torch.randn(shape, generator=generator), torch.randn(1, 5, 32), torch.randn(shape, generator=generator))
        for _ in range(count)
    ]


def test_untrained_layers_change_nothing_and_ruined_ones_are_seen() -> None:
    model, schedule = inflate(tiny_unet()), TrainingSchedule(SCHEDULER)
    clips = items(3)
    result = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent")
    assert result.on == pytest.approx(result.off, rel=1e-4)
    assert (result.clips, result.levels) == (3, 4)
    with torch.no_grad():
        model.unet.conv_out.temporal_conv.weight.mul_(3)
    ruined = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent")
    assert ruined.off == result.off
    assert ruined.gain < 0
    known = held_out_loss(model, schedule, iter(clips), levels=4, noise_kind="independent", known_off=result.off)
    assert known == ruined


def test_the_result_in_words_and_numbers() -> None:
    loss = HeldOutLoss(on=0.75, off=1.0, noise="flow", clips=3, levels=4)
    assert loss.gain == 0.25
    assert str(loss) == "loss on 3 clips, flow noise: 0.7500 with temporal layers, 1.0000 without: 25.0% lower"
    assert loss.as_dict()["gain"] == 0.25
