"""The per-frame work in torch, joined: its mattes, its pictures, and what an error lets through.

It runs on the CPU here; the same code runs on a GPU.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import decode, digest, fill_picture, make_clip, plane_arrays, run_file, times_of
from replayed import Replayed
from test_hardware import DevicePicture

from vidmatte import device_renders, graphs
from vidmatte.backdrop import Backdrop
from vidmatte.backends import DeviceBackend, Request, null
from vidmatte.backends import torch as torch_backend
from vidmatte.compute.cuda import engine
from vidmatte.compute.cuda import temporal as device_temporal
from vidmatte.compute.cuda.engine import BATCHES_IN_FLIGHT, DeviceMatting
from vidmatte.device_frames import PLANAR
from vidmatte.device_renders import DeviceRenders
from vidmatte.errors import BackendError
from vidmatte.frames import Frame, VideoInfo, layout_of
from vidmatte.matting import MattingChoice, Network, build_matting, open_network
from vidmatte.models.registry import resolve_model
from vidmatte.models.table import Curve
from vidmatte.renders import picture_maker
from vidmatte.sinks.plan import plan_output
from vidmatte.sources.synthetic import SyntheticClip, write_clip

INFO = VideoInfo("clip", 64, 48, "yuv420p", Fraction(1, 25), Fraction(25))
CURVE = Curve(0.2, 0.65)
FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "gray",
           "gbrp", "yuv420p10le", "yuv422p10le", "yuv444p12le", "gbrp10le", "gray16le",
           "yuva420p", "yuva444p10le", "gbrap"]  # fmt: skip
# Of the alpha's range, over whole pictures: what torch and the CPU's own path may differ.
MEAN_TOLERANCE = 1 / 255


def frames_of(count: int, info: VideoInfo = INFO) -> Iterator[Frame]:
    for index in range(count):
        picture = av.VideoFrame(info.width, info.height, info.pix_fmt)
        fill_picture(picture, index)
        yield Frame(picture, index, index, info.time_base)


def device_null(batch: int, formula: str = "disc") -> DeviceBackend:
    request = Request(resolve_model("live"), "cpu", (256, 320), batch, "auto", 1)
    return null.DeviceNullBackend(request, formula)


def matting_of(
    batch: int, lookahead: int = 1, *, info: VideoInfo = INFO, formula: str = "disc", **options: Any
) -> DeviceMatting:
    layout = layout_of(info.pix_fmt)
    assert layout is not None
    backend = device_null(batch, formula)
    return DeviceMatting(info, layout, backend, CURVE, lookahead=lookahead, **options)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bad", [0, 3, 5])
def test_nan_is_an_error_of_its_frame(
    batch: int, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan_at(matte_HW: Any, index: int) -> None:
        matte_HW[:] = np.nan if index == bad else 1

    monkeypatch.setitem(null.FORMULAS, "disc", nan_at)
    alphas: list[Any] = []
    with pytest.raises(BackendError, match=f"frame {bad}: the network returned NaN"):
        alphas.extend(matte.alpha for matte in matting_of(batch).process(frames_of(8)))
    assert len(alphas) == bad
    assert all((alpha == 255).all() for alpha in alphas), "nothing of the NaN is in them"


@pytest.mark.parametrize("batch", [2, 4])
def test_batches_change_no_matte(batch: int) -> None:
    """But for ties, which sums in another order may round the other way."""
    single = [matte.alpha for matte in matting_of(1).process(frames_of(7))]
    batched = [matte.alpha for matte in matting_of(batch).process(frames_of(7))]
    difference = np.abs(np.stack(single).astype(int) - np.stack(batched))
    assert difference.max() <= 1
    assert difference.mean() <= 1e-3


@pytest.mark.parametrize("fits", [1, 2])
def test_out_of_memory_while_refining_loses_no_matte(
    fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [matte.alpha for matte in matting_of(4).process(frames_of(7))]
    matting, sizes = matting_of(4), []
    work = matting._alpha

    class Small:
        def __call__(self, probability: torch.Tensor, *planes: torch.Tensor) -> Any:
            sizes.append(len(probability))
            if len(probability) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return work(probability, *planes)

        def forget(self) -> None:
            pass

    monkeypatch.setattr(matting, "_alpha", Small())
    got = list(matting.process(frames_of(7)))
    assert [matte.frame.index for matte in got] == list(range(7))
    for matte, alpha in zip(got, expected, strict=True):
        assert np.abs(matte.alpha.astype(int) - alpha).max() <= 1
    assert min(sizes) <= fits < max(sizes)


def test_out_of_memory_while_refining_one_picture_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matting = matting_of(2)

    def none_fits(items: Any, steady: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(matting, "_finished", none_fits)
    with pytest.raises(BackendError, match="out of memory"):
        list(matting.process(frames_of(5)))


@pytest.mark.parametrize("pix_fmt", PLANAR)
def test_pictures_that_lie_on_the_device_stay_there(
    pix_fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Semi-planar ones in host memory stand for them: they give the same mattes and pictures."""
    info = VideoInfo("clip", 64, 48, PLANAR[pix_fmt], Fraction(1, 25), Fraction(25))
    results = []
    for is_on_device in (False, True):
        matting = matting_of(2, info=info)
        layout = layout_of(info.pix_fmt)
        assert layout is not None
        frames = frames_of(5, info)
        if is_on_device:
            monkeypatch.setattr(matting.conformer, "conform", None)  # it needs host pictures
            frames = (replace(f, picture=device_picture(f.picture, pix_fmt)) for f in frames)
        plan = plan_output(info, ".mkv", "opaque")
        maker = picture_maker(matting, info, layout, [plan], Backdrop("green"))
        made = list(maker(matting.finish(matting.infer(frames))))
        results.append([digest(picture) for (picture,) in made])
        assert [picture.pts for (picture,) in made] == list(range(5))
    assert results[0] == results[1]


def device_picture(picture: av.VideoFrame, pix_fmt: str) -> Any:
    semi_planar = picture.reformat(format=pix_fmt, threads=1)
    semi_planar.pts = picture.pts
    return DevicePicture(semi_planar)


@pytest.mark.parametrize("background", ["green", "blur", "picture"])
def test_nothing_is_read_from_a_graph_after_its_next_call(
    background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if background == "picture":
        background = str(tmp_path / "b.png")
        av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8)).to_image().save(background)
    layout = layout_of("yuv420p")
    assert layout is not None
    plans = [plan_output(INFO, ".mkv", content) for content in ("opaque", "transparent", "matte")]

    def pictures() -> list[list[str]]:
        choice = MattingChoice("live", backend="torch", device="cpu")
        matting = build_matting(INFO, layout, open_network(INFO, choice), choice, temporal=True)
        matting._backend.batch = 3
        maker = picture_maker(matting, INFO, layout, plans, Backdrop(background))
        made = list(maker(matting.finish(matting.infer(frames_of(8)))))
        return [[digest(picture) for picture in one] for one in made]

    expected = pictures()
    for module in (engine, device_renders, device_temporal, graphs):
        monkeypatch.setattr(module, "Graphed", Replayed)
    assert pictures() == expected


def test_no_graph_outlives_its_run(clip: Path, tmp_path: Path) -> None:
    """Without garbage collection: a folder's next file needs the memory of this one's graphs."""
    alive: list[weakref.ref[graphs.Graphed]] = []
    forgotten: set[int] = set()

    class Watched(graphs.Graphed):
        def __init__(self, work: Any, device: torch.device) -> None:
            super().__init__(work, device)
            alive.append(weakref.ref(self))

        def forget(self) -> None:
            forgotten.add(id(self))

    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, device_renders, device_temporal, graphs):
            patch.setattr(module, "Graphed", Watched)
        gc.collect()
        gc.disable()
        try:
            run_file(
                clip, tmp_path / "o.mkv", tmp_path / "f.mkv", backend="torch",
                contents=("opaque", "transparent"),
            )  # fmt: skip
            left = [ref() for ref in alive]
        finally:
            gc.enable()
    assert len(alive) == 6, "prepare, network, temporal, alpha, blend, estimate"
    assert not [graph for graph in left if graph is not None and id(graph) not in forgotten]


def test_edits_and_answers_are_copied_on_lanes_of_their_own() -> None:
    """Two threads in one lane would leave each other on its stream."""
    matting = matting_of(2, adjust=lambda alpha: alpha)
    with matting.lane, matting._copy_lane:  # as the rendering thread is while edits are made
        answers = list(matting.infer(frames_of(4)))
    assert len(answers) == 4


def test_a_lane_is_entered_once() -> None:
    matting = matting_of(1)
    with matting.lane, pytest.raises(AssertionError, match="two threads"), matting.lane:
        pass


@pytest.mark.parametrize("where", ["upload_picture", "Download"])
def test_out_of_memory_anywhere_is_one_line(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine if where == "upload_picture" else device_renders, where, full)
    matting = matting_of(2)
    layout = layout_of("yuv420p")
    assert layout is not None
    plan = plan_output(INFO, ".mkv", "opaque")
    maker = picture_maker(matting, INFO, layout, [plan], Backdrop("green"))
    with pytest.raises(BackendError, match="cpu is out of memory"):
        list(maker(matting.finish(matting.infer(frames_of(3)))))


def test_a_batch_too_large_to_prepare_is_done_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matting, launch = matting_of(4), DeviceMatting._launch

    def small(self: DeviceMatting, frames: list[Frame]) -> Any:
        if len(frames) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return launch(self, frames)

    monkeypatch.setattr(DeviceMatting, "_launch", small)
    assert [matte.frame.index for matte in matting.process(frames_of(6))] == list(range(6))


def test_the_host_runs_ahead_by_what_is_said_and_no_more() -> None:
    matting, taken = matting_of(2), []

    def counted() -> Iterator[Frame]:
        for frame in frames_of(12):
            taken.append(frame.index)
            yield frame

    answers = matting.infer(counted())
    next(answers)
    assert len(taken) == 2 * BATCHES_IN_FLIGHT
    assert [answer.frame.index for answer in answers] == list(range(1, 12))


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_full_alpha_changes_no_sample(pix_fmt: str) -> None:
    info = VideoInfo("clip", 61, 47, pix_fmt, Fraction(1, 25), Fraction(25))
    matting = matting_of(2, info=info, formula="ones")
    layout = layout_of(pix_fmt)
    assert layout is not None
    maker = picture_maker(
        matting, info, layout, [plan_output(info, ".mkv", "opaque")], Backdrop("blur")
    )
    sources = list(frames_of(3, info))
    made = [pictures[0] for pictures in maker(matting.finish(matting.infer(iter(sources))))]
    assert len(made) == 3
    for picture, source in zip(made, sources, strict=True):
        own = plane_arrays(source.picture)
        count = 1 if layout.model == "gray" else 3
        if layout.alpha:  # its own alpha holes show the background
            sure = plane_arrays(source.picture)[-1] == layout.peak
            own[0], got = own[0][sure_bytes(sure, own[0])], plane_arrays(picture)[0]
            np.testing.assert_array_equal(got[sure_bytes(sure, got)], own[0])
            continue
        for got, expected in zip(plane_arrays(picture)[:count], own, strict=False):
            np.testing.assert_array_equal(got, expected)
        assert picture.pts == source.pts


def sure_bytes(sure: Any, plane: Any) -> Any:
    """Widen a mask of bytes, of which every second is set in 16 bits, to whole samples."""
    return sure if plane.shape == sure.shape else np.repeat(sure, 2, axis=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, SyntheticClip(width=320, height=180, frame_count=12), sound=True)
    return path


@pytest.mark.parametrize("background", ["green", "blur"])
def test_a_whole_run_in_torch_is_that_of_the_cpu_path(
    background: str, clip: Path, tmp_path: Path
) -> None:
    results = {}
    for backend in ("torch", "openvino"):
        alpha, out = tmp_path / f"{backend}.mkv", tmp_path / f"{backend}_out.mkv"
        run_file(
            clip, out, alpha, backend=backend, contents=("opaque", "matte"), background=background
        )
        results[backend] = alpha, out
    for mine, other in zip(*results.values(), strict=True):
        assert times_of(mine) == times_of(other)
        assert len(times_of(mine)) == len(times_of(clip))
        for left, right in zip(decode(mine), decode(other), strict=True):
            for a, b in zip(plane_arrays(left), plane_arrays(right), strict=True):
                difference = np.abs(a.astype(int) - b)
                assert difference.mean() <= 255 * MEAN_TOLERANCE
    alphas = np.stack([plane_arrays(p)[0] for p in decode(results["torch"][0])])
    assert 0.02 < (alphas == 255).mean() < 0.9, "somebody is there"


def test_transparent_outputs_of_a_run_in_torch(clip: Path, tmp_path: Path) -> None:
    results = []
    for backend in ("torch", "openvino"):
        out = tmp_path / f"{backend}.mkv"
        run_file(clip, out, backend=backend, contents=("transparent",))
        results.append(decode(out))
    for left, right in zip(*results, strict=True):
        assert left.format.name == right.format.name == "yuva420p"
        assert np.abs(plane_arrays(left)[3].astype(int) - plane_arrays(right)[3]).mean() <= 1
        for a, b in zip(plane_arrays(left), plane_arrays(right), strict=True):
            assert np.abs(a.astype(int) - b).mean() <= 2  # hidden colours differ a little more


def test_a_named_torch_backend_works_in_torch_and_auto_does_not() -> None:
    layout = layout_of("yuv420p")
    assert layout is not None
    for backend, expected in (("torch", True), ("auto", False), ("null", False)):
        choice = MattingChoice("live", backend=backend, device="cpu")
        network = open_network(INFO, choice)
        matting = build_matting(INFO, layout, network, choice, temporal=True)
        assert isinstance(matting, DeviceMatting) == expected
        matting.close()


def test_adjustments_are_made_on_the_way() -> None:
    matting = matting_of(2, adjust=lambda alpha: 255 - alpha)
    plain = matting_of(2)
    for edited, own in zip(matting.process(frames_of(3)), plain.process(frames_of(3)), strict=True):
        np.testing.assert_array_equal(edited.alpha, 255 - own.alpha)


class Memory:
    """Stands for a network on a GPU that holds so many pictures at once."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self.batches: list[int] = []

    def __call__(self, image_NHW3: torch.Tensor) -> tuple[torch.Tensor]:
        self.batches.append(len(image_NHW3))
        if len(image_NHW3) > self.pictures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (image_NHW3[..., 0].float() / 255,)

    def forget(self) -> None:
        pass


def small_backend(batch: int, pictures: int) -> tuple[torch_backend.TorchBackend, Memory]:
    request = Request(resolve_model("live"), "cpu", (64, 64), batch, "f32", 1)
    backend, memory = torch_backend.TorchBackend(request), Memory(pictures)
    backend._forward = memory
    return backend, memory


def test_out_of_memory_halves_the_batch_and_loses_no_picture() -> None:
    backend, memory = small_backend(8, 2)
    images = torch.arange(7 * 64 * 64 * 3).reshape(7, 64, 64, 3).to(torch.uint8)
    got = backend.infer_device(images)
    assert torch.equal(got, images[..., 0].float() / 255)
    assert memory.batches == [7, 4, 2, 2, 2, 1]
    assert backend.batch == 2, "and it stays so"


def test_out_of_memory_for_one_picture_is_an_error() -> None:
    backend, memory = small_backend(4, 0)
    with pytest.raises(BackendError, match="out of memory") as caught:
        backend.infer_device(torch.zeros((4, 64, 64, 3), dtype=torch.uint8))
    assert caught.value.hint
    assert memory.batches == [4, 2, 1]


def test_decoded_pictures_are_only_read(clip: Path, tmp_path: Path) -> None:
    before = [digest(picture) for picture in decode(clip)]
    layout = layout_of("yuv420p")
    assert layout is not None
    choice = MattingChoice("live", backend="torch", device="cpu")
    from vidmatte.sources.file import FileSource

    with FileSource(clip) as source:
        model, backend = open_network(source.info, choice)
        matting = build_matting(source.info, layout, Network(model, backend), choice, temporal=True)
        renders = DeviceRenders(
            matting, source.info, layout, [plan_output(source.info, ".mp4", "opaque")],
            Backdrop("green"),
        )  # fmt: skip
        held: list[Frame] = []

        def kept() -> Iterator[Frame]:
            for frame in source:
                held.append(frame)
                yield frame

        assert len(list(renders.pictures(matting.finish(matting.infer(kept()))))) == len(before)
    assert [digest(frame.picture) for frame in held] == before


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_short_clips_come_out_whole(count: int, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "s.mp4", count)
    run_file(clip, tmp_path / "o.mkv", backend="torch")
    assert times_of(tmp_path / "o.mkv") == times_of(clip)


def test_half_precision_is_near_single_on_real_pictures() -> None:
    """The arithmetic of FP16 on the CPU: the GPU's own is checked where there is one."""
    from test_backends import batch_of, model_named

    from vidmatte.models.network import folded_network

    model = model_named("live")
    tensors = model.load()
    images = torch.from_numpy(batch_of(192, 320, 3).copy())
    mean, std = torch.tensor(model.row.mean), torch.tensor(model.row.std)
    x_N3HW = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    alphas = []
    for dtype in (torch.float32, torch.float16):
        network = folded_network(model.row.network, tensors, dtype)
        with torch.inference_mode():
            alphas.append(network(x_N3HW.to(dtype))[0].float().sigmoid())
    assert alphas[0].std() > 0.2
    assert (alphas[0] - alphas[1]).abs().mean() <= 0.003
