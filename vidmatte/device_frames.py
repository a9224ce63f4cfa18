"""Pictures that lie on a GPU, as NVIDIA's decoder leaves them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidmatte.frames import Frame

if TYPE_CHECKING:
    import av

PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}  # what NVDEC gives, and the same in planes


def is_on_device(picture: av.VideoFrame) -> bool:
    """Whether the picture's planes lie on a GPU."""
    return picture.format.name == "cuda"


def device_planes(picture: av.VideoFrame) -> tuple[str, list[Any]]:
    """Return the format ("nv12" or "p010le") and the planes as DLPack capsules, for one use each.

    `torch.from_dlpack(capsule)` views luma (H, W) and chroma (H/2, W/2, 2), U before V, on the
    GPU: uint8, or for p010le uint16 with the value in the *high* 10 bits. They are capsules since
    PyAV's planes refuse the stream that torch hands to an object's `__dlpack__`. A view keeps the
    picture alive; views are read-only.

    FFmpeg copies each picture out of the decoder on the device's default stream, into memory that
    it takes again once a picture is let go. Work on another stream has to wait for that stream
    before it reads, and the default stream for that work before picture and views are let go:
    `stream.wait_stream(default)`, read, `default.wait_stream(stream)`.
    """
    assert picture.sw_format is not None
    return picture.sw_format.name, [plane.__dlpack__() for plane in picture.planes]


def to_host(frame: Frame) -> Frame:
    """Download a device picture into planes as FFmpeg would have decoded them; else do nothing."""
    picture = frame.picture
    if not is_on_device(picture):
        return frame
    assert picture.sw_format is not None
    return replace(frame, picture=in_planes(picture, PLANAR[picture.sw_format.name]))


def in_planes(picture: av.VideoFrame, pix_fmt: str) -> av.VideoFrame:
    """Return a semi-planar picture, on a GPU or not, in planes; samples are only re-ordered."""
    from av.video.reformatter import VideoReformatter

    # With threads, swscale's P010 to planes is now and then wrong where two of them meet.
    return VideoReformatter().reformat(picture, format=pix_fmt, threads=1)
