import pytest
import torch
from torch import Tensor

from msdv.config import SampleConfig
from msdv.errors import UsageError
from msdv.model.guidance import OneText
from msdv.model.text_track import TextTrack, text_keys, text_of


def embedding(value: float) -> Tensor:
    return torch.full((1, 3, 2), float(value))


def test_embeddings_go_over_from_key_to_key() -> None:
    track = TextTrack([(0, embedding(0)), (10, embedding(1)), (14, embedding(5))])
    at = track.at(torch.tensor([0, 1, 5, 10, 12, 14, 90]))
    assert at.shape == (1, 7, 3, 2)
    torch.testing.assert_close(at[0, :, 0, 0], torch.tensor([0, 0.1, 0.5, 1, 3, 5, 5]))


def test_one_text_in_all_frames_is_given_once() -> None:
    track = TextTrack([(0, embedding(0)), (10, embedding(1))])
    assert torch.equal(track.at(torch.tensor([10, 11, 40])), embedding(1))
    assert torch.equal(track.at(torch.tensor([0])), embedding(0))
    assert track.at(torch.tensor([9, 10])).shape == (1, 2, 3, 2)
    assert track.at(torch.tensor([5])).shape == (1, 1, 3, 2)


def test_in_a_loop_the_last_text_leads_back() -> None:
    track = TextTrack([(0, embedding(0)), (10, embedding(1))], loop=20)
    torch.testing.assert_close(track.at(torch.tensor([10, 15, 19, 0]))[0, :, 0, 0], torch.tensor([1, 0.5, 0.1, 0]))


def test_embeddings_keep_their_precision_and_are_made_when_asked_for() -> None:
    track = TextTrack([(0, embedding(0).half()), (100_000, embedding(1).half())])
    at = track.at(torch.arange(50_000, 50_025))
    assert at.shape == (1, 25, 3, 2) and at.dtype == torch.float16


def config(*prompt_at: str, **changes: object) -> SampleConfig:
    values = {"prompt": "day", "out": "a.gif", "frames": 100, "prompt_at": prompt_at, **changes}
    return SampleConfig.model_validate(values)


def test_keys_are_sorted_and_texts_may_hold_colons() -> None:
    assert text_keys(config("60: sunset: red ", "20:noon")) == [(0, "day"), (20, "noon"), (60, "sunset: red")]
    assert text_keys(config()) == [(0, "day")]
    assert isinstance(text_of(config(), lambda text: embedding(0)), OneText)
    assert isinstance(text_of(config("60:night"), lambda text: embedding(len(text))), TextTrack)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sunset"], "--prompt-at sunset: give a frame's number, a colon and a text: 60:sunset"),
        (["x:sunset"], "--prompt-at x:sunset: give a frame's number, a colon and a text: 60:sunset"),
        (["-1:sunset"], "--prompt-at -1:sunset: give a frame's number, a colon and a text: 60:sunset"),
        (["1.5:sunset"], "--prompt-at 1.5:sunset: give a frame's number, a colon and a text: 60:sunset"),
        ([":sunset"], "--prompt-at :sunset: give a frame's number, a colon and a text: 60:sunset"),
        (["60:"], "--prompt-at 60:: there is no text after the colon: give one, as in 60:sunset"),
        (["60:  "], "--prompt-at 60:  : there is no text after the colon: give one, as in 60:sunset"),
        (["0:sunset"], "--prompt-at 0:sunset: at frame 0 it is PROMPT that is shown: give a later frame"),
        (
            ["100:sunset"],
            "--prompt-at 100:sunset: the last of 100 frames is 99: give one of those, or raise --frames",
        ),
        (["60:sunset", "60:night"], "--prompt-at 60:night: frame 60 has a text already: leave one out"),
        (["60:sunset", "060:night"], "--prompt-at 060:night: frame 60 has a text already: leave one out"),
    ],
)
def test_what_cannot_be_meant(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        text_keys(config(*words))
    assert str(caught.value) == message
