"""Layouts, colour, orientation and plane views."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from vidmatte.frames import (
    Colour,
    Frame,
    Layout,
    Orientation,
    VideoInfo,
    layout_of,
    plane_views,
)

LAYOUTS = {
    "yuv420p": ("yuv", 1, 1, 8, False),
    "yuvj422p": ("yuv", 1, 0, 8, False),
    "yuv440p": ("yuv", 0, 1, 8, False),
    "yuv411p": ("yuv", 2, 0, 8, False),
    "yuv410p": ("yuv", 2, 2, 8, False),
    "yuva444p12le": ("yuv", 0, 0, 12, True),
    "yuv420p10le": ("yuv", 1, 1, 10, False),
    "gbrp": ("rgb", 0, 0, 8, False),
    "gbrap16le": ("rgb", 0, 0, 16, True),
    "gray": ("gray", 0, 0, 8, False),
    "gray10le": ("gray", 0, 0, 10, False),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_planar_formats_are_described(name: str) -> None:
    layout = layout_of(name)
    assert layout == Layout(name, *LAYOUTS[name])  # type: ignore[arg-type]
    assert layout.peak == 2 ** LAYOUTS[name][3] - 1
    components = av.VideoFormat(name).components
    assert max(c.bits for c in components) == layout.bits


@pytest.mark.parametrize(
    "name", ["nv12", "p010le", "rgb24", "bgra", "pal8", "yuyv422", "yuv420p10be", "", "xyuv420p"]
)
def test_other_formats_are_not(name: str) -> None:
    assert layout_of(name) is None


def test_every_layout_agrees_with_ffmpeg() -> None:
    for name in sorted(av.video.format.names):
        layout = layout_of(name)
        if layout is None:
            continue
        components = av.VideoFormat(name).components
        planes = {"gray": 1, "yuv": 3, "rgb": 3}[layout.model] + layout.alpha
        assert len(components) == planes, name
        assert {c.bits for c in components} == {layout.bits}, name
        if layout.model == "yuv":
            picture = av.VideoFrame(64, 64, name)
            chroma = picture.planes[1]
            assert (64 >> layout.shift_x, 64 >> layout.shift_y) == (chroma.width, chroma.height)


def test_plane_views_are_the_visible_samples_and_read_only() -> None:
    picture = av.VideoFrame(37, 21, "yuv420p10le")
    own = plane_views(picture, writable=True)
    assert [v.shape for v in own] == [(21, 37), (11, 19), (11, 19)]
    assert all(v.dtype == np.dtype("<u2") for v in own)
    own[0][:] = 1023
    seen = plane_views(picture)
    assert int(seen[0].max()) == int(seen[0].min()) == 1023
    with pytest.raises(ValueError, match="read-only"):
        seen[0][0, 0] = 1


@pytest.mark.parametrize(("height", "matrix"), [(719, 6), (720, 1), (480, 6), (2160, 1)])
def test_untagged_colour_is_601_below_720_lines(height: int, matrix: int) -> None:
    resolved = Colour().resolved(height)
    assert (resolved.matrix, resolved.range) == (matrix, 1)
    assert Colour(matrix=9, range=2).resolved(height) == Colour(matrix=9, range=2)


@pytest.mark.parametrize(("transfer", "is_hdr"), [(16, True), (18, True), (1, False), (2, False)])
def test_hdr_is_pq_and_hlg(transfer: int, is_hdr: bool) -> None:
    assert Colour(transfer=transfer).is_hdr == is_hdr


def test_upright_size_swaps_with_quarter_turns() -> None:
    for turn, expected in ((0, (64, 48)), (90, (48, 64)), (180, (64, 48)), (270, (48, 64))):
        info = VideoInfo(
            "v", 64, 48, "yuv420p", Fraction(1, 25), Fraction(25),
            orientation=Orientation(turn),  # type: ignore[arg-type]
        )  # fmt: skip
        assert info.upright_size == expected


def test_time_in_seconds() -> None:
    frame = Frame(av.VideoFrame(2, 2, "gray"), 0, 90, Fraction(1, 90))
    assert frame.time_s == 1.0
