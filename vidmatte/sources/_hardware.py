"""NVDEC, NVIDIA's decoder: what it may decode, and how it is opened."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from vidmatte.device_frames import PLANAR, in_planes, is_on_device
from vidmatte.frames import VideoInfo, plane_views

if TYPE_CHECKING:
    import av
    from av.codec.hwaccel import HWAccel

NVDEC = "NVDEC"
# Their standards give the value of every sample: the GPU must agree with FFmpeg bit for bit.
EXACT_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
_BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC
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

    _share_context(gpu)
    return HWAccel("cuda", str(gpu), allow_software_fallback=True, is_hw_owned=True)


def _share_context(gpu: int) -> None:
    """Let FFmpeg use the GPU's common context, which torch may have made before it.

    FFmpeg takes it only if it waits by blocking (libavutil/hwcontext_cuda.c, which fails with
    "Primary context already active with incompatible flags"); torch leaves it to the driver. Since
    CUDA 11 the flag may be set at any time (CUDA driver API, cuDevicePrimaryCtxSetFlags).
    """
    import ctypes

    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        device = ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), gpu) == 0:
            driver.cuDevicePrimaryCtxSetFlags_v2(device, _BLOCKING_SYNC)


def is_same(device: av.VideoFrame, host: av.VideoFrame) -> bool:
    """Whether a picture of the GPU is, sample by sample and in time, FFmpeg's own."""
    if not is_on_device(device) or device.sw_format is None or device.sw_format.name not in PLANAR:
        return False
    if (device.pts, device.width, device.height) != (host.pts, host.width, host.height):
        return False  # NVDEC leaves a cropped edge in the picture
    planes = plane_views(in_planes(device, PLANAR[device.sw_format.name]))
    return all(map(np.array_equal, planes, plane_views(host)))
