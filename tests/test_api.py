"""The Python interface: names, laziness, and agreement with the command's own path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import make_clip

import vidmatte
from vidmatte.errors import VidmatteError

SIZE = (160, 96)
WITHIN_A_ROUNDING = 1  # of 255: one 8-bit step between RGB and the same picture as FFV1 RGB


def photograph() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    cv2 = pytest.importorskip("cv2")
    return np.ascontiguousarray(cv2.resize(data.astronaut(), SIZE, interpolation=cv2.INTER_AREA))


def write_lossless(path: Path, pictures: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        height, width, _ = pictures[0].shape
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_public_names_are_few_and_all_there() -> None:
    assert len(vidmatte.__all__) <= 12
    for name in vidmatte.__all__:
        assert getattr(vidmatte, name).__doc__


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, vidmatte; dir(vidmatte); "
        "print([m for m in ('av', 'cv2', 'numpy', 'openvino', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vidmatte.nonsense


def test_matter_equals_a_video_of_that_one_frame(tmp_path: Path) -> None:
    picture = photograph()
    write_lossless(tmp_path / "one.mkv", [picture])
    matter = vidmatte.Matter(precision="f32")
    alpha = matter(picture)
    (matte,) = vidmatte.mattes(tmp_path / "one.mkv", precision="f32")
    assert alpha.shape == picture.shape[:2]
    assert alpha.dtype == np.uint8
    assert alpha.std() > 10, "a portrait gives neither an empty nor a full matte"
    difference = np.abs(alpha.astype(int) - matte.alpha.astype(int))
    assert difference.max() <= WITHIN_A_ROUNDING
    matter.close()


def test_matter_takes_pictures_of_changing_shape() -> None:
    picture = photograph()
    matter = vidmatte.Matter(backend="null")
    assert matter(picture).shape == (96, 160)
    assert matter(picture[:, :80].copy()).shape == (96, 80)
    assert matter(picture).min() == 255
    matter.close()


def test_matter_refuses_what_is_not_a_picture() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        vidmatte.Matter()(np.zeros((4, 4), np.uint8))


def test_mattes_yields_one_per_frame_in_order(tmp_path: Path) -> None:
    picture = photograph()
    write_lossless(tmp_path / "three.mkv", [picture, 255 - picture, picture])
    found = list(vidmatte.mattes(tmp_path / "three.mkv", backend="null"))
    assert [matte.frame.index for matte in found] == [0, 1, 2]
    assert all(matte.alpha.min() == 255 for matte in found)


def test_run_writes_the_file_and_tells_what_it_did(tmp_path: Path) -> None:
    picture = photograph()
    write_lossless(tmp_path / "in.mkv", [picture] * 5)
    seen: list[vidmatte.Progress] = []
    result = vidmatte.run(
        tmp_path / "in.mkv",
        tmp_path / "out.mp4",
        alpha=tmp_path / "alpha.mkv",
        backend="null",
        on_progress=seen.append,
    )
    assert isinstance(result, vidmatte.RunResult)
    assert result.frames == 5
    assert result.outputs == [str(tmp_path / "out.mp4"), str(tmp_path / "alpha.mkv")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alpha.mkv", "in.mkv", "out.mp4"]


def test_run_raises_one_printable_line(tmp_path: Path) -> None:
    with pytest.raises(VidmatteError, match="no such file") as caught:
        vidmatte.run(tmp_path / "a\nb.mp4", tmp_path / "out.mp4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_on_the_callers_thread_leaves_nothing_locked(
    error: type[BaseException], tmp_path: Path
) -> None:
    def stop(progress: vidmatte.Progress) -> None:
        raise error

    make_clip(tmp_path / "in.mp4", 200, (320, 240))
    with pytest.raises(error) as caught:
        vidmatte.run(tmp_path / "in.mp4", tmp_path / "out.mp4", backend="null", on_progress=stop)
    assert not (tmp_path / "out.mp4").exists()
    kept = [f"what was finished is in {part}" for part in tmp_path.glob("out.part.*")]
    assert getattr(caught.value, "__notes__", []) == kept
    result = vidmatte.run(tmp_path / "in.mp4", tmp_path / "out.mp4", backend="null")
    assert result.frames == 200


@pytest.mark.parametrize(("background", "codec"), [(None, "prores"), ("red", "h264"),
                                                   ("transparent", "prores")])  # fmt: skip
def test_an_output_holds_what_the_command_would_write(
    background: str | None, codec: str, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / "s.mp4", 3)
    vidmatte.run(source, tmp_path / "o.mov", background=background, backend="null")
    with av.open(tmp_path / "o.mov") as container:
        assert container.streams.video[0].codec_context.name == codec


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "s.mp4", 3)
    with pytest.raises(VidmatteError, match="two outputs"):
        vidmatte.run(source, tmp_path / "o.mkv", alpha=tmp_path / "o.mkv", backend="null")
