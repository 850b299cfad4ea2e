import pytest
import torch
from torch.nn.functional import mse_loss

from msdv.config import TrainConfig
from msdv.errors import UsageError
from msdv.model.diffusion import TrainingSchedule, with_last_timestep
from msdv.model.objective import kind_of_noise, min_snr_weight, schedule_to_train_on, training_loss
from msdv.weights import TemporalMetadata
from tests.tiny import SCHEDULER

VELOCITY = {**SCHEDULER, "prediction_type": "v_prediction"}


class _Base:
    """As much of an image model as the noise schedule needs."""

    name = "a model"

    def __init__(self, config: dict) -> None:
        self.scheduler_config = config
        self.prediction_type = config["prediction_type"]


def start(**changes: object) -> TemporalMetadata:
    values: dict = {
        "group_norm": "frame",
        "base": "a model",
        "unet_hash": "0" * 64,
        "frames": 4,
        "size": 32,
        "fps": 5.0,
        "prediction_type": "v_prediction",
        "scheduler": {},
        "noise": "independent",
        "steps": 1,
    }
    return TemporalMetadata.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", [1.0, 1.0, 1.0, 0.25]),
        ("v_prediction", [0.0, 0.5, 5 / 6, 5 / 21]),
        ("sample", [0.0, 1.0, 5.0, 5.0]),
    ],
)
def test_min_snr_weights_at_given_ratios(prediction_type: str, expected: list[float]) -> None:
    weights = min_snr_weight(torch.tensor([0.0, 1.0, 5.0, 20.0]), 5.0, prediction_type)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_whatever_is_predicted_min_snr_counts_an_error_in_the_latents_alike() -> None:
    schedule = TrainingSchedule(SCHEDULER)
    timesteps = torch.tensor([1, 100, 500, 999])
    snr = schedule.snr(timesteps)
    signal, noise = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    # An error of 1 in the latents is one of signal/noise in epsilon and of 1/noise in v.
    counted = [
        min_snr_weight(snr, 5.0, "epsilon") * (signal / noise) ** 2,
        min_snr_weight(snr, 5.0, "v_prediction") / noise**2,
        min_snr_weight(snr, 5.0, "sample"),
    ]
    for weights in counted:
        torch.testing.assert_close(weights, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)


def test_the_ratio_of_a_timestep_is_that_of_the_noisy_latents() -> None:
    schedule, timestep = TrainingSchedule(SCHEDULER), torch.tensor([300])
    ones, zeros = torch.ones(1, 4, 2, 3, 3), torch.zeros(1, 4, 2, 3, 3)
    signal = schedule.add_noise(ones, zeros, timestep).square().mean()
    noise = schedule.add_noise(zeros, ones, timestep).square().mean()
    torch.testing.assert_close(schedule.snr(timestep)[0], signal / noise)


def test_without_options_the_loss_is_the_mean_squared_error() -> None:
    prediction, target = torch.randn(2, 2, 4, 3, 3, 3).unbind()
    assert torch.equal(training_loss(prediction, target), mse_loss(prediction, target))


def test_the_loss_of_a_tiny_example_by_hand() -> None:
    target = torch.zeros(2, 1, 3, 1, 1)
    prediction = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]]).view(2, 1, 3, 1, 1)
    # First clip: (1 + 4 + 16) / 3 = 7, to its frame 1: (1 + 0 + 4) / 3. Second clip: 9, and no differences.
    anchor = torch.tensor([1, 0])
    plain = training_loss(prediction, target, temporal_loss=2.0, anchor=anchor)
    assert plain.item() == pytest.approx(((7 + 2 * 5 / 3) + 9) / 2)
    weight = torch.tensor([0.5, 0.25])
    weighted = training_loss(prediction, target, weight=weight, temporal_loss=2.0, anchor=anchor)
    assert weighted.item() == pytest.approx((0.5 * (7 + 2 * 5 / 3) + 0.25 * 9) / 2)
    assert training_loss(prediction, target, weight=weight).item() == pytest.approx((0.5 * 7 + 0.25 * 9) / 2)
    # From frame to frame: (1 + 4) / 2, and nothing.
    flicker = training_loss(prediction, target, weight=weight, flicker_loss=4.0)
    assert flicker.item() == pytest.approx((0.5 * (7 + 4 * 5 / 2) + 0.25 * 9) / 2)


def test_flicker_counts_where_one_of_two_frames_was_made() -> None:
    prediction = torch.tensor([9.0, 9.0, 1.0, 3.0]).view(1, 1, 4, 1, 1)
    given = torch.tensor([[True, True, False, False]])
    loss = training_loss(prediction, torch.zeros(1, 1, 4, 1, 1), flicker_loss=1.0, given=given)
    # The frames made: (1 + 9) / 2; changes from the given frame, without error, to 1 and on to 3: (1 + 4) / 2.
    assert loss.item() == pytest.approx(5 + 2.5)


def test_the_kind_of_noise_is_as_asked_or_as_before() -> None:
    def kind(before: TemporalMetadata | None = None, **wishes: object) -> tuple[str, float]:
        return kind_of_noise(TrainConfig.model_validate(wishes), before)

    flowing, sharing = start(noise="flow"), start(shared_noise=0.5)
    assert kind() == ("independent", 0.0)
    assert kind(shared_noise=2.0) == ("independent", 2.0)
    assert kind(sharing) == ("independent", 0.5)
    assert kind(sharing, shared_noise=0.0) == ("independent", 0.0)
    assert kind(sharing, noise="flow") == ("flow", 0.0)
    assert kind(flowing) == ("flow", 0.0)
    assert kind(flowing, shared_noise=1.0) == ("independent", 1.0)
    with pytest.raises(UsageError, match="--shared-noise 1: noise that flows is shared along the motion already"):
        kind(noise="flow", shared_noise=1.0)


def schedule(config: dict, before: TemporalMetadata | None = None, **wishes: object) -> dict:
    return schedule_to_train_on(TrainConfig.model_validate(wishes), _Base(config), before)  # type: ignore[arg-type]


def test_with_zero_terminal_snr_the_last_step_is_noise_alone() -> None:
    config = schedule(VELOCITY, zero_terminal_snr=True)
    zero, plain = TrainingSchedule(config), TrainingSchedule(VELOCITY)
    last, first = torch.tensor([999]), torch.tensor([0])
    assert zero.snr(last).item() == 0
    assert plain.snr(last).item() > 1e-3
    torch.testing.assert_close(zero.snr(first), plain.snr(first), rtol=1e-3, atol=0)
    latents, noise = torch.randn(2, 1, 4, 2, 3, 3).unbind()
    assert torch.equal(zero.add_noise(latents, noise, last), noise)
    assert torch.equal(zero.target(latents, noise, last), -latents)
    assert with_last_timestep(config)["timestep_spacing"] == "trailing"


def test_the_schedule_goes_on_as_it_was_unless_asked() -> None:
    before = start(scheduler={"rescale_betas_zero_snr": True})
    assert schedule(VELOCITY) == VELOCITY
    assert schedule(VELOCITY, zero_terminal_snr=False) == VELOCITY
    assert schedule(VELOCITY, before)["rescale_betas_zero_snr"] is True
    assert schedule(VELOCITY, before, zero_terminal_snr=False)["rescale_betas_zero_snr"] is False


def test_weights_keep_their_schedule_where_the_image_models_has_been_changed() -> None:
    changed = {**VELOCITY, "rescale_betas_zero_snr": True}
    assert schedule(changed) == changed
    assert schedule(changed, start(scheduler={"beta_end": 0.012})) == VELOCITY


def test_a_last_step_at_which_nothing_is_learned_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--zero-terminal-snr: a model predicts the noise, .* choose a --base that"):
        schedule(SCHEDULER, zero_terminal_snr=True)
    with pytest.raises(UsageError, match="--min-snr 5: gives no weight to the last step"):
        schedule(VELOCITY, zero_terminal_snr=True, min_snr=5.0)
