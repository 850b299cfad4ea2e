"""`msdv prep` against the bash script of 2022 around Debian's ffmpeg, and against decoding alone, in turn.

    python tests/bench/prep.py [VIDEO ...]

Needs ffmpeg and ffprobe. Without videos, clips of 24 s are made first, one a kind. Prints processor time (user and
system, of all processes, starting up included) of one video at a time, medians of three rounds; then the wall clock of
all videos, two at a time. The script's own rules are tests/bench/prep_2022.sh.
"""

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msdv.data.synthetic import render, sample_sky
from msdv.data.video import write_video

ROUNDS = 3
SECONDS, LOOP = 24, 6
SCRIPT = Path(__file__).with_name("prep_2022.sh")
_DECODE = """
import sys, av
with av.open(sys.argv[1]) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    for frame in container.decode(stream):
        pass
"""
_H264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "21"]
CLIPS: dict[str, tuple[str, int, list[str]]] = {  # size, frames per second, encoder
    "h264-b-1080p30.mp4": ("1920:1080", 30, _H264),
    "h264-b-1080p60.mp4": ("1920:1080", 60, _H264),
    "h264-b-720p25.mkv": ("1280:720", 25, _H264),
    "hevc-b-1080p30.mp4": ("1920:1080", 30, ["-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=error"]),
    "phone-1080p30.mp4": ("1920:1080", 30, [*_H264, "-bf", "0", "-g", "30"]),
    "mpeg2-576p25.mpg": ("720:576", 25, ["-c:v", "mpeg2video", "-q:v", "4", "-bf", "2"]),
    "vp9-1080p30.webm": (
        "1920:1080",
        30,
        ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "4M"],
    ),
    "prores-1080p25.mov": ("1920:1080", 25, ["-c:v", "prores_ks", "-profile:v", "1"]),
}


def make_clips(folder: Path) -> list[Path]:
    """Clouds with the grain of a camera."""
    original = folder / "original.mp4"
    write_video(original, list(render(sample_sky(random.Random(1)), 30 * LOOP, (360, 640))), fps=30)
    clips = []
    for name, (size, rate, encoder) in CLIPS.items():
        clips.append(folder / name)
        filters = f"fps={rate},scale={size},noise=alls=5:allf=t,format=yuv420p"
        source = ["-stream_loop", str(SECONDS // LOOP - 1), "-i", str(original)]
        subprocess.run(["ffmpeg", "-v", "error", *source, "-vf", filters, *encoder, str(clips[-1])], check=True)
    original.unlink()
    return clips


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system time of the processes that `work` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def wall_seconds(work: Callable[[], object]) -> float:
    """Time that passes while `work` runs."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(command: Sequence[str]) -> None:
    """One process, with nothing to be seen of it unless it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")


def script(folder: Path, out: Path, at_once: int = 1) -> None:
    """The script of 2022 on all files of a folder."""
    run(["bash", str(SCRIPT), str(folder), str(out), str(at_once)])


def msdv(folder: Path, out: Path, workers: int = 1) -> None:
    """The command, with the options that the script has built in."""
    run([sys.executable, "-m", "msdv", "prep", str(folder), str(out), "--workers", str(workers)])


def main() -> None:
    """Print the table."""
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        print("left out: needs ffmpeg and ffprobe (Debian: apt install ffmpeg)")
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "made").mkdir()
        clips = [Path(argument).resolve() for argument in sys.argv[1:]] or make_clips(work / "made")
        (work / "all").mkdir()
        print(
            f"{'video':24} {'script':>8} {'msdv':>8} {'decoding':>8}   msdv/script  msdv/decoding   (processor seconds)"
        )
        for clip in clips:
            (work / clip.stem).mkdir()
            shutil.copy(clip, work / clip.stem)
            shutil.copy(clip, work / "all")
            times: dict[str, list[float]] = {"script": [], "msdv": [], "decoding": []}
            for _ in range(ROUNDS):
                for key, todo in (
                    ("script", lambda: script(work / clip.stem, work / "out")),  # noqa: B023 - called at once
                    ("msdv", lambda: msdv(work / clip.stem, work / "out")),  # noqa: B023
                    ("decoding", lambda: run([sys.executable, "-c", _DECODE, str(clip)])),  # noqa: B023
                ):
                    times[key].append(cpu_seconds(todo))
                    shutil.rmtree(work / "out", ignore_errors=True)
            one, two, three = (statistics.median(times[key]) for key in ("script", "msdv", "decoding"))
            print(
                f"{clip.name[:24]:24} {one:8.2f} {two:8.2f} {three:8.2f}   {two / one:11.2f}  {two / three:13.2f}",
                flush=True,
            )
        for measure, what in ((cpu_seconds, "processor"), (wall_seconds, "wall clock")):
            pairs = []
            for _ in range(3):
                pair = []
                for prepare in (script, msdv):
                    pair.append(measure(lambda: prepare(work / "all", work / "out", 2)))  # noqa: B023
                    shutil.rmtree(work / "out", ignore_errors=True)
                pairs.append(pair)
            one, two = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
            print(f"all, two at a time, {what}: script {one:.2f} s, msdv {two:.2f} s, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
