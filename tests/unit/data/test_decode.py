"""Which frame is on display when, and how it comes out, for the kinds of files that people have."""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from msdv.data import decode
from msdv.data.container import packets_to_decode
from msdv.data.decode import Picture, VideoReader
from msdv.data.picture import PictureSettings
from msdv.data.timeline import Timeline, read_timeline
from msdv.data.video import write_video
from msdv.errors import MsdvError
from tests.unit.data.video_fixtures import numbered, read_number, turn, write_clip, write_sound

B_FRAMES = {"bf": "3", "preset": "medium", "crf": "18"}
KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b-frames.mp4": {"options": B_FRAMES},
    "fragmented.mp4": {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "b-frames.mkv": {"options": B_FRAMES},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "veryfast", "x265-params": "log-level=none:bframes=3"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264-b-frames.avi": {"options": B_FRAMES},
    "motion-jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "full_range": True},
    "raw.h264": {"options": B_FRAMES, "container_format": "h264"},
    "stream.ts": {"options": B_FRAMES},
    "dvd.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "q": "2"}},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "flash.flv": {},
    "windows.wmv": {"codec": "wmv2"},
    "with-sound.mp4": {"sound": 3.0},
    "with-sound.mkv": {"sound": 3.0, "options": B_FRAMES},
}


def read_pictures(path: Path, timeline: Timeline, chosen: Iterable[int], size: int) -> Iterator[Picture]:
    return VideoReader(path, timeline, PictureSettings(size, size)).pictures(chosen)


def numbers(path: Path, chosen: Sequence[int] | None = None, size: int = 64) -> dict[int, int]:
    timeline = read_timeline(path)
    wanted = range(len(timeline.times)) if chosen is None else chosen
    return {p.index: read_number(p.jpeg) for p in read_pictures(path, timeline, wanted, size)}


def first_picture(path: Path, size: int = 64) -> np.ndarray:
    picture = next(read_pictures(path, read_timeline(path), [0], size))
    with Image.open(io.BytesIO(picture.jpeg)) as image:
        assert image.format == "JPEG" and image.mode == "RGB" and image.size == (size, size)
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_has_its_time(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, 30, **KINDS[name])
    timeline = read_timeline(path)
    # Sound that starts a little before it makes the container start there too; AVI counts from the first decoding,
    # which with B-frames is a frame or two before the first display.
    latest = {"with-sound.mp4": 0.03, "with-sound.mkv": 0.03, "mpeg4-b-frames.avi": 0.041, "h264-b-frames.avi": 0.081}
    first = timeline.times[0]
    assert 0 <= first < latest.get(name, 0.001)
    times = [float(time - first) for time in timeline.times]
    assert times == pytest.approx([i / 25 for i in range(30)], abs=0.001)
    assert float(timeline.end - first) == pytest.approx(30 / 25, abs=0.002)
    assert timeline.guessed_rate == 25
    assert timeline.note is None
    assert numbers(path) == {i: i for i in range(30)}
    assert numbers(path, [3, 4, 17, 29]) == {3: 3, 4: 4, 17: 17, 29: 29}


CODECS: dict[str, dict[str, Any]] = {
    **{name: KINDS[name] for name in ("plain.mp4", "b-frames.mp4", "b-frames.mkv", "stream.ts", "fragmented.mp4")},
    **{name: KINDS[name] for name in ("hevc.mp4", "vp9.webm", "av1.mp4", "dvd.mpg", "prores.mov", "h264-b-frames.avi")},
    **{name: KINDS[name] for name in ("mpeg4-b-frames.avi", "motion-jpeg.avi", "raw.h264", "windows.wmv")},
    "refresh.ts": {"options": {**B_FRAMES, "x264-params": "intra-refresh=1"}},
    "hevc-b-frames.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=4:b-adapt=0"}},
    "hevc-closed.ts": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"bf": "2", "q": "2"}},
    "mpeg2-closed.ts": {
        "codec": "mpeg2video",
        "options": {"bf": "2", "q": "2", "flags": "+cgop", "sc_threshold": "1000000000"},
    },
    "vp8.mkv": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"}},
    "vp9-alt-ref.webm": {
        "codec": "libvpx-vp9",
        "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16"},
    },
    "animation.gif": {},
}


@pytest.mark.parametrize("gop", [7, 25, 250])
@pytest.mark.parametrize("name", CODECS)
def test_leaving_out_gives_the_same_bytes(tmp_path: Path, name: str, gop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no wanted frame needs is not decoded; and the wanted ones are as if all had been."""
    path = tmp_path / name
    if path.suffix == ".gif":
        write_video(path, [moving(i) for i in range(60)], fps=25)
    else:
        options = {**CODECS[name].get("options", {}), "g": str(gop)}
        write_clip(path, 60, picture=moving, **{**CODECS[name], "options": options})
    timeline = read_timeline(path)
    choices = ([1, 2, 7, 12, 13, 28, 41, 58, 59], [0], [59], [30], range(20, 40, 5), [6, 7, 8, 24, 25, 26], range(60))
    fast = {tuple(chosen): pictures_of(path, timeline, chosen) for chosen in choices}
    monkeypatch.setattr(decode, "_SKIPPING_CODECS", ())
    monkeypatch.setattr(decode, "_JUMPING_CODECS", ())
    full = dict(pictures_of(path, timeline, range(60)))
    for chosen, pictures in fast.items():
        assert pictures == [(i, full[i]) for i in chosen], chosen


def pictures_of(path: Path, timeline: Timeline, chosen: Iterable[int]) -> list[tuple[int, bytes]]:
    return [(p.index, p.jpeg) for p in read_pictures(path, timeline, chosen, 64)]


def moving(number: int) -> np.ndarray:
    """A picture that moves everywhere, so that each frame needs those before it."""
    y, x = np.mgrid[:64, :64]
    waves = np.sin((x + 3 * number) / 5) + np.cos((y - 2 * number) / 7) + np.sin((x * y) / 60 + number)
    return np.stack([128 + 40 * waves, 128 - 30 * waves, 90 + 20 * waves], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "hevc.mp4", "stream.ts", "dvd.mpg"])
def test_frames_that_no_other_needs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are really left out: of the frames between the wanted ones the decoder gives fewer than there are."""
    path = write_clip(tmp_path / name, 60, **KINDS[name])
    given = []
    frames = VideoReader._decode_needed
    monkeypatch.setattr(VideoReader, "_decode_needed", lambda *a: (given.append(f) or f for f in frames(*a)))
    assert [index for index, _ in pictures_of(path, read_timeline(path), [0, 59])] == [0, 59]
    assert len(given) < 60


def test_leaving_out_leaves_out(tmp_path: Path) -> None:
    """Of seven groups of seven frames, the decoder sees what it must."""
    path = write_clip(tmp_path / "a.mp4", 49, options={"preset": "ultrafast", "g": "7", "keyint_min": "7"})
    timeline = read_timeline(path)
    assert timeline.order is not None and timeline.order.entries.sum() == 7
    seen = packets_to_decode(timeline.order.pts, timeline.order.entries, np.isin(np.arange(49), [8, 9, 30]), False)
    assert np.flatnonzero(seen).tolist() == [7, 8, 9, 28, 29, 30]


def test_leading_pictures_need_the_group_before() -> None:
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])
    entries = np.array([1, 0, 0, 0, 1, 0, 0, 1, 0, 0], bool)
    assert packets_to_decode(pts, entries, pts == 4, False).tolist() == [True] * 6 + [False] * 4
    assert packets_to_decode(pts, entries, pts == 6, False).tolist() == [False] * 4 + [True] + [False] * 5
    assert packets_to_decode(pts, entries, pts == 7, False).tolist() == [False] * 4 + [True] * 5 + [False]
    assert packets_to_decode(pts, entries, pts == 7, True).tolist() == (pts == 7).tolist()


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 100, 250, 900, 1000, 1001, 1500, 4000, 4100]
    path = write_clip(tmp_path / "a.mp4", times=times, time_base=Fraction(1, 1000), options=B_FRAMES)
    assert [round(time * 1000) for time in read_timeline(path).times] == times
    assert numbers(path) == {i: i for i in range(9)}


def test_times_count_from_the_start_of_the_container(tmp_path: Path) -> None:
    """A recording that begins at 100 s, as televisions make them."""
    path = write_clip(tmp_path / "a.ts", times=range(2500, 2530))
    with av.open(str(path)) as container:
        assert container.start_time and container.start_time > 50e6
    assert read_timeline(path).times[0] == 0
    assert read_timeline(path).times[25] == 1


@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_edit_lists_hide_frames(tmp_path: Path, b_frames: str) -> None:
    """What a phone's editor cuts off stays in the file: ten frames that no player shows."""
    path = write_clip(
        tmp_path / "a.mp4",
        times=range(-10, 30),
        options={**B_FRAMES, "bf": b_frames},
        container_options={"avoid_negative_ts": "disabled"},
    )
    assert read_timeline(path).end == Fraction(30, 25)
    assert numbers(path) == {i: i + 10 for i in range(30)}
    assert numbers(path, [0, 7, 29]) == {0: 10, 7: 17, 29: 39}


def test_sound_longer_than_the_picture_does_not_lengthen_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 25, sound=4.0)
    timeline = read_timeline(path)
    assert timeline.duration is not None and timeline.duration > 3.9
    assert timeline.end == 1


def test_streams_glued_together(tmp_path: Path) -> None:
    """The clock goes back, and the size of the picture changes."""
    one = write_clip(tmp_path / "1.ts", 20, options=B_FRAMES)
    two = write_clip(
        tmp_path / "2.ts", 20, options=B_FRAMES, size=(96, 80), picture=lambda i: numbered(100 + i, 96, 80)
    )
    glued = tmp_path / "glued.ts"
    glued.write_bytes(one.read_bytes() + two.read_bytes())
    timeline = read_timeline(glued)
    assert sorted(timeline.times) == list(timeline.times)
    assert float(timeline.end) == pytest.approx(40 / 25, abs=0.1)
    found = numbers(glued)
    assert [found[i] for i in sorted(found)] == [*range(20), *range(100, 120)]


def quarters(_: int) -> np.ndarray:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:32, :32], picture[:32, 32:], picture[32:, :32], picture[32:, 32:] = COLOURS
    return picture


COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230))


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((1, 0, 0, -1), lambda a: a[::-1]),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda a: np.rot90(a.swapaxes(0, 1), 2)),
    ],
)
def test_turned_and_mirrored(tmp_path: Path, matrix: tuple[int, int, int, int], upright: Any) -> None:
    path = turn(write_clip(tmp_path / "a.mp4", 2, picture=quarters), matrix)
    found, expected = first_picture(path), upright(quarters(0).astype(int))
    for y, x in ((16, 16), (16, 48), (48, 16), (48, 48)):
        assert np.abs(found[y, x] - expected[y, x]).max() < 12


@pytest.mark.parametrize("colorspace", [1, 5, None])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 200, 40), (10, 10, 240), (250, 250, 250), (16, 16, 16)])
def test_colours(tmp_path: Path, colorspace: int | None, full_range: bool, colour: tuple[int, int, int]) -> None:
    path = write_clip(
        tmp_path / "a.mp4",
        2,
        picture=lambda _: np.full((64, 64, 3), colour, dtype=np.uint8),
        colorspace=colorspace,
        full_range=full_range,
        options={"crf": "4"},
    )
    assert np.abs(first_picture(path) - colour).max() <= 4


def test_high_definition_without_a_word_about_colours_is_bt709(tmp_path: Path) -> None:
    def red(_: int) -> np.ndarray:
        return np.full((720, 1280, 3), (200, 30, 40), dtype=np.uint8)

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        frame = av.VideoFrame.from_ndarray(red(0), format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(first_picture(path) - (200, 30, 40)).max() <= 4


@pytest.mark.slow  # FFmpeg takes seconds to set up the conversion
@pytest.mark.parametrize("transfer", [16, 18])  # PQ, HLG
def test_high_dynamic_range_is_brought_down(tmp_path: Path, transfer: int) -> None:
    """Greys stay grey and in order, the reference white of PQ is bright, a BT.2020 colour is fuller in BT.709."""
    greys = (0, 60, 148, 255)
    bands = np.repeat(np.array(greys, dtype=np.uint8), 16)[None, :, None].repeat(64, axis=0).repeat(3, axis=2)
    bands[32:] = (160, 90, 90)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        frame = av.VideoFrame.from_ndarray(bands, format="rgb24").reformat(
            format="yuv420p10le", dst_colorspace="BT2020", dst_color_range="MPEG"
        )
        frame.colorspace, frame.color_primaries, frame.color_trc = 9, 9, transfer
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    picture = first_picture(path)
    shown = [picture[16, 16 * i + 8] for i in range(4)]
    assert [int(np.ptp(grey)) for grey in shown] == pytest.approx([0] * 4, abs=4)
    assert sorted(grey[0] for grey in shown) == [grey[0] for grey in shown]
    assert shown[0][0] < 4 and shown[3][0] > 250
    if transfer == 16:
        assert shown[1][0] < 50 and shown[2][0] > 150
    red = picture[48, 32]
    assert red[0] - red[1] > 75


def test_interlaced_video_has_no_comb(tmp_path: Path) -> None:
    """Fields of one frame are moments apart, here one dark and one bright: the picture is one of them, its own."""

    def comb(number: int) -> np.ndarray:
        picture = np.full((128, 128, 3), 60 + 10 * number, np.uint8)
        picture[1::2] = 230
        return picture

    options = {"flags": "+ildct+ilme", "q": "2", "g": "1"}
    path = write_clip(tmp_path / "a.mpg", 6, codec="mpeg2video", options=options, size=(128, 128), picture=comb)
    timeline = read_timeline(path)
    for index, picture in enumerate(read_pictures(path, timeline, range(6), 64)):
        with Image.open(io.BytesIO(picture.jpeg)) as image:
            grey = np.asarray(image.convert("L")).astype(int)[8:-8]
        level = 60 + 10 * index
        assert grey.std() < 6 and min(abs(grey.mean() - level), abs(grey.mean() - 230)) < 6
    # As the script did, they are mixed.
    reader = VideoReader(path, timeline, PictureSettings(64, 64, as_script=True))
    with Image.open(io.BytesIO(next(reader.pictures([0])).jpeg)) as image:
        assert 100 < np.asarray(image.convert("L"))[8:-8].mean() < 190


@pytest.mark.parametrize("pixels", ["gray", "rgb24", "yuva420p", "yuv444p10le", "yuv410p", "rgba"])
def test_pixel_formats(tmp_path: Path, pixels: str) -> None:
    codec, name = ("png", "a.mov") if pixels.startswith("rgb") else ("ffv1", "a.mkv")
    assert numbers(write_clip(tmp_path / name, 3, codec=codec, pixels=pixels, options={})) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("size", [(160, 64), (64, 160), (66, 64), (640, 64), (64, 640), (1024, 16)])
def test_the_centre_is_cut_out(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", 3, picture=lambda i: numbered(2 + i, *size), size=size)
    assert numbers(path) == {0: 2, 1: 3, 2: 4}


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square(tmp_path: Path, turned: bool) -> None:
    """48 x 96 pixels, each twice as wide as high, are a square on a screen, turned or not."""
    path = write_clip(
        tmp_path / "a.mp4",
        2,
        size=(48, 96),
        pixel_aspect=Fraction(2),
        picture=lambda _: np.asarray(Image.fromarray(quarters(0)).resize((48, 96), Image.Resampling.NEAREST)),
    )
    found = first_picture(turn(path, (-1, 0, 0, -1)) if turned else path)
    expected = np.rot90(quarters(0), 2) if turned else quarters(0)
    for y, x in ((3, 3), (3, 60), (60, 3), (60, 60), (28, 28), (36, 36)):
        assert np.abs(found[y, x] - expected[y, x].astype(int)).max() < 40


@pytest.mark.parametrize("size", [16, 24, 200])
def test_sizes(tmp_path: Path, size: int) -> None:
    assert numbers(write_clip(tmp_path / "a.mp4", 3), size=size) == {0: 0, 1: 1, 2: 2}


def test_tiny_source(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.mkv", 2, codec="ffv1", options={}, size=(2, 2), picture=lambda _: quarters(0)[31:33, 31:33]
    )
    assert first_picture(path, 64).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "name",
    ["with space.mp4", "new\nline.mp4", "雲 über.mp4", "a:b.mp4", "100%d.mp4", "-y.mp4", "http:x.mp4", "'\".mp4"],
)
def test_names(tmp_path: Path, name: str) -> None:
    assert numbers(write_clip(tmp_path / name, 3)) == {0: 0, 1: 1, 2: 2}


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    whole = write_clip(tmp_path / "a.mp4", 25).read_bytes()
    (tmp_path / "no-moov.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    write_sound(tmp_path / "sound.m4a")
    write_sound(tmp_path / "cover.mp3", cover=True)
    for name, reason in {
        "text.mp4": "not a video",
        "empty.mp4": "not a video",
        "no-moov.mp4": "not a video",
        "sound.m4a": "sound only",
        "cover.mp3": "cover picture",
        "missing.mp4": "gone",
    }.items():
        with pytest.raises(MsdvError, match=reason):
            read_timeline(tmp_path / name)


def test_a_playlist_in_disguise_asks_no_network(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(MsdvError):
        read_timeline(tmp_path / "a.mp4")


def test_a_codec_nobody_knows(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(MsdvError, match="codec is unknown"):
        read_timeline(path)


@pytest.mark.parametrize("name", ["plain.mp4", "b-frames.mkv", "stream.ts", "mpeg4-b-frames.avi"])
def test_truncated(tmp_path: Path, name: str) -> None:
    """What is whole is given, with its right number, and that there should be more is told where the file knows it.

    The last few frames may lean on others that are gone, which no decoder says of all of them.
    """
    options = {**KINDS[name], "container_options": {"movflags": "faststart"} if name.endswith(".mp4") else {}}
    path = write_clip(tmp_path / name, 100, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    timeline = read_timeline(path)
    count = len(timeline.times)
    assert 10 < count < 90
    pictures = list(read_pictures(path, timeline, range(count - 4), 64))
    whole = {picture.index: read_number(picture.jpeg) for picture in pictures if not picture.damaged}
    assert len(whole) >= count - 6
    assert [i for i, number in whole.items() if i != number] == []
    if name != "stream.ts":
        assert timeline.note and "breaks off" in timeline.note


def test_broken_in_the_middle(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 100, options={"g": "10", "preset": "ultrafast", "crf": "10"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    timeline = read_timeline(path)
    whole = [p for p in read_pictures(path, timeline, range(100), 64) if not p.damaged and not 25 <= p.index <= 55]
    assert len(whole) > 60
    assert all(read_number(p.jpeg) == p.index for p in whole)
