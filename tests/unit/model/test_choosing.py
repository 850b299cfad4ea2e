from dataclasses import replace

import pytest

from msdv.config import SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.model.choosing import choose_savings, fitting_window, fixed_settings
from msdv.model.ends import AROUND
from msdv.model.windows import Length
from tests.unit.model.test_plan import JOB


def test_what_was_given_is_not_chosen_and_without_a_card_nothing_is() -> None:
    assert fixed_settings(TrainConfig(checkpointing="full"), card=True) == {"checkpointing": "full"}
    without_card = fixed_settings(TrainConfig(), card=False)
    assert without_card["checkpointing"] == "none" and without_card["offload_optim"] is False


def test_with_room_a_sample_is_made_at_once() -> None:
    whole, savings, _ = choose_savings(JOB, SampleConfig.model_validate({"prompt": "", "out": "a.gif", "vram": 8}))
    assert whole.chunk_frames == savings.chunk_frames == 0


def test_a_run_that_can_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match=r"--vram 0\.48: this takes .* try (--frames \d+ or )?a smaller --size"):
        choose_savings(JOB, TrainConfig(vram=0.48))


def test_a_window_is_suggested_where_not_all_frames_fit() -> None:
    assert fitting_window(replace(JOB, frames=100), 60) == 25
    assert fitting_window(replace(JOB, frames=100), 20) == 19
    assert fitting_window(replace(JOB, frames=100), 5) is None
    assert fitting_window(replace(JOB, frames=20), 60) is None
    assert fitting_window(replace(JOB, frames=100, length=Length(50, 5)), 60) is None
    long = replace(JOB, frames=1000)
    with pytest.raises(UsageError, match=r"try --window \d+, with which 1000 frames fit, or --frames \d+"):
        choose_savings(long, SampleConfig.model_validate({"prompt": "", "out": "a.gif", "vram": 0.52}))


def test_frames_around_a_video_are_counted_but_not_suggested() -> None:
    around = replace(JOB, frames=20, around=True)
    assert around.made == 20 + 2 * AROUND
    assert fitting_window(around, 10) == 15 and fitting_window(around, 20) is None
    assert replace(JOB, frames=1, around=True).made == 1
    assert [around.longest(made) for made in (0, 1, 7, 8, 26)] == [0, 1, 1, 2, 20]
    with pytest.raises(UsageError, match=r"try --window \d+, with which 1000 frames fit, or --frames"):
        choose_savings(
            replace(around, frames=1000),
            SampleConfig.model_validate({"prompt": "", "out": "a.gif", "vram": 0.52}),
        )
