"""How late, how even and how honest live pictures are on this machine.

    python benchmarks/latency.py [--size 640x360 --size 1280x720] [--fps 30 --fps 60]
                                 [--seconds 60] [--slow 3] [--preset balanced] [--model live]
                                 [--background green] [--json FILE]

A synthetic camera whose pictures carry their number as a bar code goes through the real live
session to a virtual camera in memory, which reads the code back: the picture sent is the one
claimed, or the run fails. Prints a card, then per size and rate: latency from capture to send,
drift, rhythm, counts, ages, stage times, and which bounds hold. `--slow N` makes the network take
N picture intervals at its first size: latency must stay bounded and the rhythm steady, and the
governor says what it gave up. The last line of stdout is one JSON document. Exit 1: a bound broke.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
from machine import machine_card

from vidmatte.frames import Frame, Matte, VideoInfo, plane_views
from vidmatte.live import networks, rendering
from vidmatte.live.contracts import Counts, LiveChoice
from vidmatte.live.governor import PRESETS
from vidmatte.live.mattes import LiveMatting
from vidmatte.live.rack import BackgroundRack
from vidmatte.live.session import LiveSession
from vidmatte.live.shutter import Ready
from vidmatte.matting import MattingChoice, Network, open_network
from vidmatte.pipeline import Crew, Stop
from vidmatte.sources._synthetic_camera import SyntheticCamera, code_of

SIZES, RATES = ("640x360", "1280x720"), (30, 60)
WARM_UP_S = 10.0  # networks are opened, the governor finds its level, the delay forgets the start
LATENCY_MS = {30: (45.0, 70.0), 60: (35.0, 50.0)}  # p50 and p95, by rate
JITTER_MS = 4.0  # of sending, 95th percentile
DRIFT_SHARE = 0.25  # of a picture interval, over the run: what follows the machine's load, no more
OLDEST_REPEAT_MS = 200.0
IN_FLIGHT = 3
AROUND = 15  # pictures before and after one that tell the interval of its time
INTERVALS = 2  # that a new picture may wait beyond the work on it
SLOW_LATENCY_MS = 200.0  # whatever the network does
NEAR = 240  # pictures that a code may be off by and still be one: half-covered codes read as any
STEADY_SHARE = 0.02  # that the rate of sending may be off


@dataclass(frozen=True)
class Setting:
    """What is measured in one run."""

    size: tuple[int, int]
    fps: int
    seconds: float
    slow: float
    preset: str
    model: str
    background: str

    @property
    def interval_ms(self) -> float:
        return 1000 / self.fps


@dataclass
class Sent:
    """One picture that was sent: when, what its stamp claims, what its code says."""

    time_s: float
    pts: int | None
    code: int | None


class MemoryCamera:
    """A virtual camera that reads the code off every picture."""

    device = "memory"

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def send(self, picture: av.VideoFrame) -> None:
        time_s = time.monotonic()
        code = code_of(np.ascontiguousarray(plane_views(picture)[0]))
        self.sent.append(Sent(time_s, picture.pts, code))

    def readers(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


class WatchedCamera(SyntheticCamera):
    """The synthetic camera, remembering the stamp of every picture by its number."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.size, Fraction(setting.fps))
        self.stamps: dict[int, int] = {}

    def read(self) -> Frame:
        frame = super().read()
        self.stamps[frame.index] = frame.pts
        return frame


class WatchedMattes(LiveMatting):
    """The live mattes, remembering the times of their stages."""

    def __init__(self, info: VideoInfo, setting: Setting, crew: Crew) -> None:
        choice = MattingChoice(setting.model)
        super().__init__(info, choice, PRESETS[setting.preset], crew)
        self.stages: list[dict[str, float]] = []

    def matte(self, frame: Frame) -> Matte | None:
        matte = super().matte(frame)
        self.stages.append(dict(self.stage_s))
        return matte


class SlowBackend:
    """A backend that takes `seconds` for each answer, or its own time if that is longer."""

    def __init__(self, network: Network, seconds: float) -> None:
        inner = self._inner = network.backend
        self._seconds = seconds
        self.name, self.batch, self.input_size = inner.name, inner.batch, inner.input_size
        self.description = f"{inner.description}, slowed to {1000 * seconds:.0f} ms"

    def infer(self, image_NHW3: Any) -> Any:
        end_s = time.monotonic() + self._seconds
        answer = self._inner.infer(image_NHW3)
        time.sleep(max(0.0, end_s - time.monotonic()))
        return answer

    def close(self) -> None:
        self._inner.close()


@dataclass
class Run:
    """What one session left behind."""

    setting: Setting
    camera: WatchedCamera
    output: MemoryCamera
    mattes: list[WatchedMattes] = field(default_factory=list)
    work_s: dict[int, float] = field(default_factory=dict)  # on each picture, by its stamp
    counts: list[Counts] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    told_s: float = 0.0  # when the last line was said
    began_s: float = 0.0
    cpu_s: float = 0.0
    elapsed_s: float = 0.0


def main() -> None:
    options = parse_options()
    card = make_card(options)
    show("machine", card)
    runs = []
    for size in options.size or SIZES:
        for fps in options.fps or RATES:
            width, height = map(int, size.split("x"))
            setting = Setting(
                (width, height), fps, options.seconds, options.slow, options.preset,
                options.model, options.background,
            )  # fmt: skip
            result = judge(measure(setting))
            show(
                f"{size} at {fps} fps" + (f", {options.slow:g}x slow" * (options.slow > 0)), result
            )
            runs.append({"size": size, "fps": fps, **result})
    line = json.dumps({"card": card, "runs": runs}, allow_nan=False)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)
    sys.exit(any(run["broken"] for run in runs))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure live latency on this machine.")
    parser.add_argument("--size", action="append", help="picture size; again for more")
    parser.add_argument("--fps", action="append", type=int, help="camera rate; again for more")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run")
    parser.add_argument("--slow", type=float, default=0.0, help="network's time, in intervals")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="balanced")
    parser.add_argument("--model", default="live")
    parser.add_argument("--background", default="green")
    parser.add_argument("--json", type=Path, help="also write the document here")
    return parser.parse_args()


def make_card(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **machine_card("numpy"),
        "model": options.model,
        "preset": options.preset,
        "background": options.background,
        "seconds": options.seconds,
    }


@contextmanager
def slowed(setting: Setting) -> Iterator[None]:
    """Let networks take `slow` picture intervals at the first level's size, in proportion below."""
    if not setting.slow:
        yield
        return
    first = PRESETS[setting.preset][0].size

    def open_slow(info: VideoInfo, choice: MattingChoice, size: int) -> Network:
        network = open_network(info, choice, size)
        seconds = setting.slow / setting.fps * (size / first) ** 2
        return Network(network.model, SlowBackend(network, seconds))

    with mock.patch.object(networks, "open_network", open_slow):
        yield


def measure(setting: Setting) -> Run:
    """Run one session for its time."""
    run = Run(setting, WatchedCamera(setting), MemoryCamera())

    def open_mattes(info: VideoInfo, crew: Crew) -> WatchedMattes:
        run.mattes.append(WatchedMattes(info, setting, crew))
        return run.mattes[-1]

    session = LiveSession(
        lambda: run.camera,
        lambda width, height, rate: run.output,
        BackgroundRack([setting.background]),
        MattingChoice(setting.model),
        LiveChoice(preset=setting.preset),
        open_mattes=open_mattes,
    )

    def tick() -> None:
        if lines := session.events():
            run.lines += lines
            run.told_s = time.monotonic()
        run.counts.append(session.status().counts)
        if run.counts[-1].shown and not run.began_s:
            run.began_s, run.cpu_s = time.monotonic(), time.process_time()
        if run.began_s and time.monotonic() - run.began_s > WARM_UP_S + setting.seconds:
            session.end()

    def note(*parts: Any, **named: Any) -> Ready:
        ready = Ready(*parts, **named)
        if ready.picture.pts is not None:
            run.work_s[ready.picture.pts] = ready.ready_s - ready.taken_s
        return ready

    with slowed(setting), mock.patch.object(rendering, "Ready", note):
        result = session.run(Stop(), tick)
    run.elapsed_s = time.monotonic() - run.began_s
    run.cpu_s = time.process_time() - run.cpu_s
    run.counts.append(result.status.counts)
    return run


def judge(run: Run) -> dict[str, Any]:
    """Turn a run into numbers, and name the bounds that broke."""
    start_s = run.began_s + WARM_UP_S
    sent = [s for s in run.output.sent if s.time_s >= start_s]
    new, repeats = split(sent)
    result: dict[str, Any] = {
        **rhythm(run.setting, sent, new),
        **lateness(run, new),
        **honesty(run, sent, repeats),
        **accounts(run),
        "stages_ms": stage_times(run),
        "cpu_ms_per_picture": round(1000 * run.cpu_s / max(1, run.counts[-1].captured), 2),
        "cpu_cores": round(run.cpu_s / run.elapsed_s, 2),
        "said": run.lines,
    }
    result["broken"] = broken(run.setting, result)
    return result


def split(sent: list[Sent]) -> tuple[list[Sent], list[Sent]]:
    """Tell pictures sent for the first time from repeats; the background alone is neither."""
    new, repeats = [], []
    last: int | None = None
    for item in sent:
        if item.pts is None:
            continue
        (repeats if item.pts == last else new).append(item)
        last = item.pts
    return new[1:], repeats  # the first may be a repeat of the warm-up


def age_ms(item: Sent) -> float:
    assert item.pts is not None
    return 1000 * item.time_s - item.pts / 1000


def rhythm(setting: Setting, sent: list[Sent], new: list[Sent]) -> dict[str, Any]:
    """How even the sending is, and whether it keeps the camera's pace."""
    times = np.array([s.time_s for s in sent])
    intervals = 1000 * np.diff(times)
    span_s = times[-1] - times[0]
    return {
        "sent_fps": round(float((len(times) - 1) / span_s), 3),
        "new_fps": round(len(new) / float(span_s), 3),
        "interval_ms": round(float(np.median(intervals)), 3),
        "jitter_p95_ms": round(
            float(np.percentile(np.abs(intervals - np.median(intervals)), 95)), 3
        ),
    }


def lateness(run: Run, new: list[Sent]) -> dict[str, Any]:
    """Latency from capture to send, and whether it grows.

    A step of the governor changes latency at once, which is no drift: that is taken from what
    comes after the last one.
    """
    ages = np.array([age_ms(s) for s in new])
    times = np.array([s.time_s for s in new])
    settled = times > run.told_s + WARM_UP_S if run.told_s else np.ones(len(times), bool)
    settled_s = float(np.ptp(times[settled])) if settled.any() else 0.0
    drift_ms = settled_s * drift(times[settled], ages[settled]) if settled_s > WARM_UP_S else None
    captures = np.array([s.pts for s in new], float) / 1e6
    return {
        "latency_p50_ms": round(float(np.percentile(ages, 50)), 2),
        "latency_p95_ms": round(float(np.percentile(ages, 95)), 2),
        "latency_max_ms": round(float(ages.max()), 2),
        "drift_ms": None if drift_ms is None else round(drift_ms, 3),
        "drift_over_s": round(settled_s, 1),
        "send_per_capture_s": round(
            float(np.polyfit(captures - captures[0], times - times[0], 1)[0]), 7
        ),
    }


def drift(times: np.ndarray, ages: np.ndarray) -> float:  # type: ignore[type-arg]
    """Return the median slope between all pairs of seconds, by their median ages (Theil-Sen)."""
    seconds = np.floor(times - times[0])
    middles = [(s, float(np.median(ages[seconds == s]))) for s in np.unique(seconds)]
    slopes = [(b - a) / (t - s) for n, (s, a) in enumerate(middles) for t, b in middles[n + 1 :]]
    return statistics.median(slopes)


def honesty(run: Run, sent: list[Sent], repeats: list[Sent]) -> dict[str, Any]:
    """Whether pictures are the ones claimed, and how old repeats and waiting pictures are.

    A carried mask leaves out what has changed since it was made, such as the code: unreadable,
    so that a slow run may read none.
    """
    numbers = {pts: number for number, pts in run.camera.stamps.items()}
    stamped = [(s.code, numbers[s.pts]) for s in sent if s.pts is not None]
    read = [(code, number) for code, number in stamped if code is not None]
    near = [(code, number) for code, number in read if abs(code - number) <= NEAR]
    new, _ = split(sent)
    return {
        "pictures_read": len(near),
        "pictures_unreadable": len(stamped) - len(near),
        "pictures_wrong": sum(code != number for code, number in near),
        "background_alone": len(sent) - len(stamped),
        "oldest_repeat_ms": round(max(map(age_ms, repeats), default=0.0), 2),
        "longest_wait_intervals": round(longest_wait(run, sent, new), 3),
    }


def longest_wait(run: Run, sent: list[Sent], new: list[Sent]) -> float:
    """Return how long a picture waited beyond the work on it, in intervals of that time."""
    times = np.array([s.time_s for s in sent])
    longest = 0.0
    for item in new:
        if item.pts in run.work_s:
            place = int(np.searchsorted(times, item.time_s))
            around = 1000 * np.diff(times[max(0, place - AROUND) : place + AROUND])
            interval_ms = max(run.setting.interval_ms, float(np.median(around)))
            longest = max(longest, (age_ms(item) - 1000 * run.work_s[item.pts]) / interval_ms)
    return longest


def accounts(run: Run) -> dict[str, Any]:
    """Whether every picture is accounted for, at every look and at the end."""
    last = run.counts[-1]
    balanced = all(c.captured == c.shown + c.dropped + c.in_flight for c in run.counts)
    return {
        "captured": last.captured,
        "shown": last.shown,
        "dropped": last.dropped,
        "in_flight": last.in_flight,
        "repeated": last.repeated,
        "closed": last.closed,
        "most_in_flight": max(c.in_flight for c in run.counts),
        "balanced": balanced and last.captured == len(run.camera.stamps),
    }


def stage_times(run: Run) -> dict[str, float]:
    """Median milliseconds of each stage, by the last mattes."""
    stages = run.mattes[-1].stages
    names = {name for stage in stages for name in stage}
    return {
        name: round(1000 * statistics.median(s[name] for s in stages if name in s), 2)
        for name in sorted(names)
    }


def broken(setting: Setting, result: dict[str, Any]) -> list[str]:
    """Name the bounds that do not hold."""
    p50, p95 = LATENCY_MS.get(setting.fps, (float("inf"),) * 2)
    slow = setting.slow > 0
    bounds = {
        "latency p50": slow or result["latency_p50_ms"] <= p50,
        "latency p95": result["latency_p95_ms"] <= (SLOW_LATENCY_MS if slow else p95),
        "drift": slow
        or (
            result["drift_ms"] is not None
            and abs(result["drift_ms"]) <= DRIFT_SHARE * setting.interval_ms
        ),
        "jitter": result["jitter_p95_ms"] <= JITTER_MS,
        "rate": abs(result["sent_fps"] * result["interval_ms"] / 1000 - 1) <= STEADY_SHARE,
        "counts": result["balanced"] and not result["in_flight"],
        "in flight": result["most_in_flight"] <= IN_FLIGHT,
        "repeats": result["oldest_repeat_ms"] <= OLDEST_REPEAT_MS,
        "waiting": result["longest_wait_intervals"] <= INTERVALS,
        "pictures": not result["pictures_wrong"] and (slow or result["pictures_read"] > 0),
    }
    return [name for name, holds in bounds.items() if not holds]


def show(title: str, values: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:23} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
