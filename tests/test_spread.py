"""Several GPUs: one file's batches over all of them, or a folder's files, one on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vidmatte.backends import Backend, DeviceBackend, open_backend
from vidmatte.backends._spread import SpreadBackend, open_spread, parse_devices
from vidmatte.errors import BackendError, UsageError
from vidmatte.models.registry import resolve_model

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
        return open_backend(
            model, size=(64, 128), backend="torch", device="cpu", batch=2, threads=2
        )

    image = np.random.default_rng(5).integers(0, 256, (5, 64, 128, 3), np.uint8)
    spread = open_spread(["a", "b"], open_one)
    single = open_one("a")
    try:
        # In the same parts: other sizes have other kernels, which round in the last bit.
        expected = np.concatenate([single.infer(part).copy() for part in (image[:3], image[3:])])
        np.testing.assert_array_equal(spread.infer(image), expected)
    finally:
        spread.close()
        single.close()
