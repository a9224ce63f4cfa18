"""The blurred source as background: the room without the subject."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from background_scenes import (
    COLOUR_TOLERANCE,
    decoded,
    frame_of,
    info_of,
    picture_from,
    ramp,
    shrink_mask,
    subject_scene,
)

from vidmatte.backdrop import Backdrop
from vidmatte.compute.cpu.background import blur_background
from vidmatte.errors import UsageError
from vidmatte.frames import layout_of, plane_views


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p", "yuv410p", "gbrp"])
@pytest.mark.parametrize("size", [(320, 240), (323, 237)], ids=str)
@pytest.mark.parametrize("strength", [0.3, 2.0, 10.0])
def test_blur_leaves_the_subject_out(pix_fmt, size, strength):
    """A red disc in a gray room must not tint the blurred room: no halo around the subject."""
    info = info_of(pix_fmt, size)
    frame, alpha = subject_scene(info, (230, 20, 20), np.array((120.0, 130.0, 140.0)))
    planes = blur_background(strength, info, layout_of(pix_fmt)).planes(frame, alpha)
    sources = plane_views(frame.picture)
    assert [p.shape for p in planes] == [p.shape for p in sources]
    assert [p.dtype for p in planes] == [p.dtype for p in sources]
    back = 255 * decoded(planes, layout_of(pix_fmt), 6, pix_fmt == "gbrp")
    error = abs(back - (120, 130, 140))
    # Chroma of 4:1:0 covers 4 by 4: nearer than that, source samples hold both colours.
    assert error[shrink_mask(alpha == 0, 4)].max() <= COLOUR_TOLERANCE
    assert error[alpha == 0].mean() <= COLOUR_TOLERANCE / 2


def test_blur_of_a_room_without_subject_is_a_gaussian():
    """Against scipy-free direct convolution: the variance of a blurred line is sigma squared."""
    info = info_of("gray", (640, 480))
    picture = av.VideoFrame(640, 480, "gray")
    plane = plane_views(picture, writable=True)[0]
    plane[...] = 0
    plane[:, 320:] = 200
    alpha = np.zeros((480, 640), np.uint8)
    background = blur_background(2.0, info, layout_of("gray"))
    edge = background.planes(frame_of(picture), alpha)[0][240].astype(np.float64)
    density = np.diff(edge) / 200
    at = np.arange(639) + 1.0
    mean = (density * at).sum()
    sigma = np.sqrt((density * (at - mean) ** 2).sum())
    assert abs(mean - 320) < 0.5
    assert abs(sigma - 0.02 * 640) < 1.0


@pytest.mark.parametrize("axis", [0, 1])
def test_blur_is_round_where_pixels_are_not_square(axis):
    """Pixels twice as wide as high: half of the sigma, in samples, across."""
    info = replace(info_of("gray", (640, 480)), sample_aspect_ratio=Fraction(2))
    picture = av.VideoFrame(640, 480, "gray")
    plane = plane_views(picture, writable=True)[0]
    plane[...] = 0
    halves = plane[240:] if axis == 0 else plane[:, 320:]
    halves[...] = 200
    background = blur_background(1.0, info, layout_of("gray"))
    blurred = background.planes(frame_of(picture), np.zeros((480, 640), np.uint8))[0]
    edge = (blurred[:, 320] if axis == 0 else blurred[240]).astype(np.float64)
    density = np.diff(edge) / 200
    at = np.arange(len(density)) + 1.0
    sigma = np.sqrt((density * (at - (density * at).sum()) ** 2).sum())
    assert abs(sigma - (12.8 if axis == 0 else 6.4)) < 1.0


def test_blur_of_a_picture_full_of_subject_is_still_a_picture():
    info = info_of("yuv420p", (64, 48))
    picture = picture_from(ramp(64, 48), info)
    alpha = np.full((48, 64), 255, np.uint8)
    planes = blur_background(None, info, layout_of("yuv420p")).planes(frame_of(picture), alpha)
    for plane, source in zip(planes, plane_views(picture), strict=True):
        assert abs(plane.mean() - source.mean()) < 2


def test_blur_of_a_gray_source_in_a_yuv_layout():
    picture = av.VideoFrame(33, 21, "gray")
    plane_views(picture, writable=True)[0][...] = 77
    background = blur_background(1.0, info_of("gray", (33, 21)), layout_of("yuv420p"))
    luma, *chroma = background.planes(frame_of(picture), np.zeros((21, 33), np.uint8))
    assert (luma == 77).all()
    assert all(plane.shape == (11, 17) and (plane == 128).all() for plane in chroma)


@pytest.mark.parametrize("strength", [0, -1, 26, float("nan")])
def test_blur_refuses_senseless_strengths(strength):
    with pytest.raises(UsageError, match="strength"):
        blur_background(strength, info_of("yuv420p", (64, 48)), layout_of("yuv420p"))


@pytest.mark.parametrize("text", ["blur:0", "blur:x", "blur:-1", "blur:"])
def test_a_blur_of_no_strength_is_refused_with_what_works(text: str) -> None:
    with pytest.raises(UsageError, match="is not a blur") as caught:
        Backdrop(text)
    assert "blur:2" in (caught.value.hint or "")
