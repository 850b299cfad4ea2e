import pytest
import torch
from torch.nn.functional import mse_loss

from msdv.model.diffusion import TrainingSchedule, predict
from msdv.model.evaluation import held_out_loss
from msdv.model.given import Given, conditioned_on_picture, frames_given, look
from msdv.model.inflate import inflate
from msdv.model.objective import training_loss
from tests.tiny import SCHEDULER, tiny_unet


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_given_frames_are_shown_clean_at_timestep_0_wherever_they_are_looked_at() -> None:
    clean, noisy = random(1, 4, 6, 2, 2), random(1, 4, 3, 2, 2, seed=1)
    given = Given(clean, torch.tensor([True, False, False, False, True, False]))
    shown, timesteps = given.show(noisy, torch.tensor(700), torch.tensor([3, 4, 5]))
    assert timesteps.tolist() == [[700, 0, 700]]
    assert torch.equal(shown[:, :, 1], clean[:, :, 4])
    assert torch.equal(shown[:, :, [0, 2]], noisy[:, :, [0, 2]])
    kept = given.keep(random(1, 4, 6, 2, 2, seed=2))
    assert torch.equal(kept[:, :, [0, 4]], clean[:, :, [0, 4]])
    assert torch.equal(kept[:, :, 1], random(1, 4, 6, 2, 2, seed=2)[:, :, 1])


def test_inpainting_models_keep_given_frames_by_mask_and_paint_the_others_on_grey() -> None:
    clean, blank = random(1, 4, 3, 2, 2), random(1, 4, 2, 2, seed=1)
    condition = Given(clean, torch.tensor([False, True, False])).condition(blank)
    assert condition.shape == (1, 5, 3, 2, 2)
    assert condition[0, 0, :, 0, 0].tolist() == [1, 0, 1]
    assert torch.equal(condition[:, 1:, 1], clean[:, :, 1])
    assert torch.equal(condition[:, 1:, 0], blank)


def test_a_picture_in_all_frames_is_grey_where_it_is_to_be_painted() -> None:
    seen: list[torch.Tensor] = []

    def encode(picture: torch.Tensor) -> torch.Tensor:
        seen.append(picture)
        return picture.new_full((1, 4, 2, 2), 0.5)

    picture, mask = random(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    condition = conditioned_on_picture(encode, picture, mask, 3)
    assert (seen[0][..., 8:] == 0).all()
    assert torch.equal(seen[0][..., :8], picture[..., :8])
    assert condition.shape == (1, 5, 3, 2, 2)
    assert condition[0, 0].unique(dim=0).tolist() == [[[0, 1], [0, 1]]]
    assert (conditioned_on_picture(encode, picture, None, 3)[0, 0] == 0).all()
    assert torch.equal(seen[1], picture)


@pytest.mark.parametrize(
    ("condition", "frames"), [("none", []), ("first-frame", [0]), ("keyframes:2", [0, 2, 4]), ("keyframes:4", [0, 4])]
)
def test_which_frames_a_condition_is_about(condition: str, frames: list[int]) -> None:
    assert frames_given(condition, 6).nonzero().flatten().tolist() == frames


def test_with_no_frame_given_a_model_sees_what_it_saw_before() -> None:
    noisy, clean, timesteps = random(2, 4, 3, 2, 2), random(2, 4, 3, 2, 2, seed=1), torch.tensor([5, 900])
    none = torch.zeros(2, 3, dtype=torch.bool)
    latents, times, condition = look(noisy, timesteps, clean, none, None)
    assert latents is noisy
    assert times is timesteps
    assert condition is None
    blank = random(1, 4, 2, 2, seed=2)
    _, times, condition = look(noisy, timesteps, clean, none, blank)
    assert times is timesteps
    assert condition is not None
    assert torch.equal(condition, torch.cat([torch.ones(2, 1, 3, 2, 2), blank[:, :, None].expand(2, -1, 3, -1, -1)], 1))


def test_the_loss_does_not_look_at_given_frames() -> None:
    prediction, target, weight = random(2, 4, 5, 2, 2), random(2, 4, 5, 2, 2, seed=1), torch.tensor([0.5, 2.0])
    given = torch.tensor([[True, False, False, False, False], [True, False, True, False, True]])
    other = torch.where(given[:, None, :, None, None], random(2, 4, 5, 2, 2, seed=2) * 100, prediction)
    options = {
        "weight": weight,
        "temporal_loss": 1.0,
        "flicker_loss": 2.0,
        "anchor": torch.tensor([0, 1]),
        "given": given,
    }
    assert training_loss(prediction, target, **options) == training_loss(other, target, **options)  # type: ignore[arg-type]
    expected = (
        mse_loss(prediction[0, :, 1:], target[0, :, 1:]) + mse_loss(prediction[1, :, 1::2], target[1, :, 1::2])
    ) / 2
    torch.testing.assert_close(training_loss(prediction, target, given=given), expected)
    torch.testing.assert_close(
        training_loss(prediction, target, given=torch.zeros_like(given)), mse_loss(prediction, target)
    )


def test_layers_that_were_trained_with_the_first_frame_given_make_use_of_it() -> None:
    """Clips that stand still: what is below the noise of a frame is what the first one shows."""
    torch.manual_seed(0)
    schedule = TrainingSchedule(SCHEDULER | {"prediction_type": "sample"})
    model, frames, text = inflate(tiny_unet()), 3, torch.zeros(4, 5, 32)
    optimizer = torch.optim.Adam(model.temporal_parameters().values(), lr=1e-2)

    def clips(count: int) -> torch.Tensor:
        return torch.randn(count, 4, 1, 4, 4).sign().expand(-1, -1, frames, -1, -1)

    items = [(clips(1), text[:1], torch.randn(1, 4, frames, 4, 4)) for _ in range(4)]

    def losses() -> list[float]:
        conditions = ("none", "first-frame")
        return [
            held_out_loss(model, schedule, iter(items), levels=2, noise_kind="independent", condition=c).on
            for c in conditions
        ]

    before = losses()
    given = frames_given("first-frame", frames).repeat(4, 1)
    given[::2] = False
    for _ in range(40):
        clean, timesteps = clips(4), torch.randint(1000, (4,))
        noise = torch.randn_like(clean)
        noisy, times, _ = look(schedule.add_noise(clean, noise, timesteps), timesteps, clean, given, None)
        loss = training_loss(predict(model, noisy, times, text), clean, given=given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plain, helped = losses()
    assert before[1] > 0.97 * before[0]
    assert helped < 0.85 * plain
