"""Several GPUs: one file's batches over all of them, or a folder's files, one on each."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import decode, make_clip

from vidmatte.backends import Backend, DeviceBackend, open_backend
from vidmatte.backends._spread import SpreadBackend, open_spread, parse_devices
from vidmatte.batch import FolderPlan, Start, plan_folder, run_folder
from vidmatte.cli.console import Console
from vidmatte.cli.folder import run_plan
from vidmatte.errors import BackendError, InputError, UsageError
from vidmatte.jobs import EncodingChoice, Progress, RunResult
from vidmatte.matting import MattingChoice
from vidmatte.models.registry import resolve_model
from vidmatte.pipeline import Stop
from vidmatte.runner import FileRun
from vidmatte.sinks.plan import Content

SIZE = (64, 96)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ["auto"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:3,cuda:01", ["cuda:3", "cuda:1"]),
    ],
)
def test_devices_are_read(text: str, expected: list[str]) -> None:
    assert parse_devices(text) == expected


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda:", "cuda:0,", "cuda:0,,1", "cpu,cuda:0", "cuda:-1", "0,1", "cuda:0 1"]
)
def test_nonsense_is_no_device(text: str) -> None:
    with pytest.raises(UsageError, match="there is no device") as caught:
        parse_devices(text)
    assert "cuda:0,1" in (caught.value.hint or "")


def test_a_gpu_is_named_once() -> None:
    with pytest.raises(UsageError, match="names cuda:1 twice"):
        parse_devices("cuda:1,0,1")


@pytest.mark.parametrize(("count", "expected"), [(0, ["cuda"]), (2, ["cuda:0", "cuda:1"])])
def test_all_gpus(count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert parse_devices("cuda:all") == expected


class Late:
    """A result that is still being computed: notes when somebody asks for it."""

    def __init__(self, values: Any, asked: Callable[[], None]) -> None:
        self._values, self._asked = values, asked

    def to(self, device: object, *, non_blocking: bool) -> Any:
        assert non_blocking
        self._asked()
        return self._values


class FakeBackend:
    """Answers with each picture's first sample, and keeps a diary."""

    input_size = SIZE

    def __init__(self, name: str, diary: list[str], batch: int = 4) -> None:
        import torch

        self.name, self.batch, self.diary = name, batch, diary
        self.description = f"fake on {name}"
        self.device = torch.device("cpu")
        self.error: BackendError | None = None

    def infer_device(self, image_NHW3: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.diary.append(f"{self.name} runs {len(image_NHW3)}")
        result = image_NHW3[:, :1, :1, 0].float()
        return Late(result, lambda: self.diary.append(f"{self.name} is waited for"))

    def infer(self, image_NHW3: Any) -> Any:
        raise AssertionError("waits for each")

    def close(self) -> None:
        self.diary.append(f"{self.name} closes")


def numbered(count: int) -> Any:
    import torch

    image = torch.zeros((count, *SIZE, 3), dtype=torch.uint8)
    return image + torch.arange(count, dtype=torch.uint8)[:, None, None, None]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 12])
def test_parts_are_equal_and_all_launched_before_any_is_waited_for(count: int) -> None:
    diary: list[str] = []
    backends = [FakeBackend(name, diary) for name in "abc"]
    spread = SpreadBackend(backends)
    assert isinstance(spread, DeviceBackend)
    assert (spread.batch, spread.input_size) == (12, SIZE)
    result = spread.infer_device(numbered(count))
    assert result[:, 0, 0].tolist() == list(range(count))
    runs = [line for line in diary if "runs" in line]
    assert diary[: len(runs)] == runs
    sizes = [int(line.split()[-1]) for line in runs]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert [line[0] for line in runs] == list("abc")[: len(runs)]


def test_an_error_names_the_device_and_keeps_its_hint() -> None:
    backends = [FakeBackend(name, []) for name in "ab"]
    spread = SpreadBackend(backends)
    for said, expected in (("out of memory", "cpu: out of memory"), ("cpu failed", "cpu failed")):
        backends[1].error = BackendError(said, hint="less")
        with pytest.raises(BackendError) as caught:
            spread.infer_device(numbered(4))
        assert (str(caught.value), caught.value.hint) == (expected, "less")


def test_words_for_it_change_with_the_first() -> None:
    backends = [FakeBackend(name, []) for name in "ab"]
    spread = SpreadBackend(backends)
    assert spread.description == "fake on a and cpu"
    backends[0].description = "engine on a"
    assert spread.description == "engine on a and cpu"
    spread.description += " (why)"
    assert spread.description == "engine on a (why) and cpu"


def test_none_is_left_open_when_one_is_missing() -> None:
    diary: list[str] = []

    def open_one(device: str) -> Backend:
        if device == "cuda:2":
            raise BackendError("there is no cuda:2")
        return FakeBackend(device, diary)

    with pytest.raises(BackendError, match="no cuda:2"):
        open_spread(["cuda:0", "cuda:1", "cuda:2"], open_one)
    assert diary == ["cuda:0 closes", "cuda:1 closes"]
    both = open_spread(["cuda:0", "cuda:1"], open_one)
    both.close()
    assert isinstance(both, SpreadBackend)
    assert diary[2:] == ["cuda:0 closes", "cuda:1 closes"]
    assert open_spread(["cuda:0"], open_one).name == "cuda:0"


def test_a_backend_of_the_host_alone_is_refused() -> None:
    model = resolve_model("live")

    def open_one(device: str) -> Backend:
        return open_backend(model, size=(128, 128), backend="null", device="cpu")

    with pytest.raises(BackendError, match="backend null does not run on several"):
        open_spread(["cuda:0", "cuda:1"], open_one)


def test_spread_torch_gives_the_very_same() -> None:
    model = resolve_model("live")

    def open_one(device: str) -> Backend:
        return open_backend(model, size=(64, 64), backend="torch", device="cpu", batch=2, threads=1)

    image = np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3), np.uint8)
    spread = open_spread(["a", "b"], open_one)
    single = open_one("a")
    try:
        # In the same parts: other sizes have other kernels, which round in the last bit.
        expected = np.concatenate([single.infer(part).copy() for part in (image[:2], image[2:])])
        np.testing.assert_array_equal(spread.infer(image), expected)
    finally:
        spread.close()
        single.close()


def start_of(name: str, diary: list[str], **options: Any) -> Start:
    """Build real runs with the null backend, noting which device took which file."""

    def start(source: str, outputs: dict[str, Content]) -> FileRun:
        diary.append(f"{name} {Path(source).stem}")
        return FileRun(source, outputs, matting=MattingChoice(backend="null"), **options)

    return start


def folder_of(path: Path, count: int, frames: int, size: tuple[int, int] = (64, 48)) -> FolderPlan:
    (path / "in").mkdir()
    clip = make_clip(path / "in" / "0.mp4", frames, size)
    for number in range(1, count):
        shutil.copy(clip, path / "in" / f"{number}.mp4")
    return plan_folder(path / "in", path / "out")


def test_four_files_on_two_devices(tmp_path: Path) -> None:
    plan = folder_of(tmp_path, 4, 30)
    (tmp_path / "in" / "1.mp4").write_text("no video")
    diary: list[str] = []
    outcomes = list(run_folder(plan, start_of("a", diary), Stop(), more=[start_of("b", diary)]))
    assert sorted(line[2:] for line in diary) == ["0", "1", "2", "3"]
    assert {line[0] for line in diary} == {"a", "b"}
    errors = {o.job.source.stem: o.error for o in outcomes if o.error is not None}
    assert list(errors) == ["1"]
    assert isinstance(errors["1"], InputError)
    for stem in "023":
        assert len(decode(tmp_path / "out" / f"{stem}.mp4")) == 30


def test_one_device_keeps_the_order(tmp_path: Path) -> None:
    plan = folder_of(tmp_path, 3, 2)
    main = threading.current_thread()
    threads: list[threading.Thread] = []
    diary: list[str] = []

    def start(source: str, outputs: dict[str, Content]) -> FileRun:
        threads.append(threading.current_thread())
        return start_of("a", diary)(source, outputs)

    outcomes = list(run_folder(plan, start, Stop()))
    assert [o.job.source.stem for o in outcomes] == ["0", "1", "2"]
    assert threads == [main] * 3


class FakeRun:
    """Stands for a FileRun: what `work` does with the stop is what comes of it."""

    def __init__(self, work: Callable[[Stop], RunResult]) -> None:
        self._work = work

    def run(self, stop: Stop, on_progress: Callable[[Progress], None]) -> RunResult:
        on_progress(Progress(10, 2.0, 40, Fraction(25)))
        return self._work(stop)


def fake(work: Callable[[Stop], RunResult]) -> Start:
    return lambda source, outputs: cast("FileRun", FakeRun(work))


def until_stopped(stop: Stop) -> RunResult:
    assert not stop.wait(lambda: False, 20)
    return RunResult(stopped_by=stop.reason, kept_parts=["x.part.mp4"])


def test_files_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet(stop: Stop) -> RunResult:
        meeting.wait()
        return RunResult()

    plan = folder_of(tmp_path, 4, 1)
    outcomes = list(run_folder(plan, fake(meet), Stop(), more=[fake(meet)]))
    assert [outcome.error for outcome in outcomes] == [None] * 4


@pytest.mark.fault
def test_a_stop_reaches_every_file(tmp_path: Path) -> None:
    plan = folder_of(tmp_path, 3, 300, (160, 96))
    slow = EncodingChoice(preset="medium", crf=1)  # to be long enough, and to flush in time
    diary: list[str] = []
    stop = Stop()

    def progress(running: Mapping[int, Progress]) -> None:
        if len(running) == 2 and all(p.frames > 5 for p in running.values()):
            stop.request(signal.SIGINT)

    started_s = time.monotonic()
    starts = [start_of(name, diary, encoding=slow) for name in "ab"]
    outcomes = list(run_folder(plan, starts[0], stop, progress, more=starts[1:]))
    assert time.monotonic() - started_s < 15
    assert len(outcomes) == len(diary) == 2
    for outcome in outcomes:
        assert outcome.result is not None
        assert outcome.result.stopped_by == signal.SIGINT
        assert decode(Path(outcome.result.kept_parts[0]))


@pytest.mark.fault
def test_a_device_that_is_not_there_ends_all(tmp_path: Path) -> None:
    """Nothing has succeeded yet: the other device's run is stopped and its part is named."""

    def missing(source: str, outputs: dict[str, Content]) -> FileRun:
        raise BackendError("there is no cuda:1")

    plan = folder_of(tmp_path, 3, 1)
    with pytest.raises(BackendError, match="no cuda:1") as caught:
        list(run_folder(plan, fake(until_stopped), Stop(), more=[missing]))
    assert caught.value.__notes__ == ["what was finished is in x.part.mp4"]


@pytest.mark.fault
def test_a_bug_in_one_run_comes_out_and_ends_the_others(tmp_path: Path) -> None:
    def broken(stop: Stop) -> RunResult:
        raise ZeroDivisionError

    plan = folder_of(tmp_path, 2, 1)
    stop = Stop()
    started_s = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        list(run_folder(plan, fake(broken), stop, more=[fake(until_stopped)]))
    assert time.monotonic() - started_s < 10
    assert not stop.requested


@pytest.mark.fault
def test_an_error_while_telling_ends_the_runs(tmp_path: Path) -> None:
    def progress(running: Mapping[int, Progress]) -> None:
        raise KeyboardInterrupt

    plan = folder_of(tmp_path, 2, 1)
    starts = [fake(until_stopped)] * 2
    with pytest.raises(KeyboardInterrupt):
        list(run_folder(plan, starts[0], Stop(), progress, more=starts[1:]))


def test_progress_tells_of_all_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    told = threading.Event()

    class Listening(Console):
        def overwrite(self, line: str) -> None:
            super().overwrite(line)
            if "1, 2" in line:
                told.set()

    def listen(stop: Stop) -> RunResult:
        assert told.wait(10)
        return RunResult()

    plan = folder_of(tmp_path, 2, 1)
    console = Listening(quiet=False, as_json=False)
    assert run_plan(plan, fake(listen), Stop(), console, more=[fake(listen)]) == 0
    shown = capsys.readouterr().err
    assert "files 1, 2 of 2  20 of 80 frames  10.0 fps  0:06 left" in shown
    assert "2 of 2 files done" in shown
