"""NVDEC, NVIDIA's decoder: what it may decode, and pictures that stay on the GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vidmatte.frames import Frame, VideoInfo, plane_views

if TYPE_CHECKING:
    import av
    from av.codec.hwaccel import HWAccel

NVDEC = "NVDEC"
# Their standards give the value of every sample: the GPU must agree with FFmpeg bit for bit.
EXACT_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}  # what NVDEC gives, and the same in planes
_DECODABLE = frozenset({"yuvj420p", *PLANAR.values()})


def suits_device(info: VideoInfo) -> bool:
    """Whether NVDEC may be tried: the codec, the format, the size, and an FFmpeg that knows it.

    The chroma of odd sizes is left to FFmpeg: PyAV exports half of the luma's size, rounded down.
    """
    from av.codec.hwaccel import hwdevices_available

    is_even = info.width % 2 == 0 and info.height % 2 == 0
    is_known = info.codec in EXACT_CODECS and info.pix_fmt in _DECODABLE
    return is_known and is_even and not info.is_still and "cuda" in hwdevices_available()


def accelerator(gpu: int) -> HWAccel:
    """Return what makes `av.open` decode on GPU number `gpu` and leave the pictures there.

    In the middle of a stream a size that the GPU cannot decode comes as host pictures.
    """
    from av.codec.hwaccel import HWAccel

    return HWAccel("cuda", str(gpu), allow_software_fallback=True, is_hw_owned=True)


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


def is_same(device: av.VideoFrame, host: av.VideoFrame) -> bool:
    """Whether a picture of the GPU is, sample by sample and in time, FFmpeg's own."""
    if not is_on_device(device) or device.sw_format is None or device.sw_format.name not in PLANAR:
        return False
    if (device.pts, device.width, device.height) != (host.pts, host.width, host.height):
        return False  # NVDEC leaves a cropped edge in the picture
    planes = plane_views(in_planes(device, PLANAR[device.sw_format.name]))
    return all(map(np.array_equal, planes, plane_views(host)))
