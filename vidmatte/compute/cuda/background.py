"""What stands behind the subject, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vidmatte.compute.cpu.blur import BlurBackground as HostBlur
from vidmatte.compute.cuda.blur import BlurBackground
from vidmatte.compute.cuda.transfer import upload

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vidmatte.compute.cpu.background import Background
    from vidmatte.compute.cuda.engine import DeviceMatte
    from vidmatte.frames import Layout, Samples, VideoInfo

_NO_ALPHA = np.empty((0, 0), np.uint8)  # only a blur looks at it


class DeviceBackground(Protocol):
    """Gives what each colour plane of a matte's frame is blended over. Belongs to one thread."""

    def planes(self, matte: DeviceMatte) -> Sequence[Tensor]:
        """Return the planes, on the device."""


def on_device(
    background: Background, info: VideoInfo, layout: Layout, device: torch.device
) -> DeviceBackground:
    """Bring a background that is not of one colour to the device.

    A blur is made there; other planes are uploaded when they are other ones than before.
    """
    if isinstance(background, HostBlur):
        return _Blurred(BlurBackground(background.strength, info, layout, device))
    return _Uploaded(background, device)


class _Blurred:
    def __init__(self, blur: BlurBackground) -> None:
        self._blur = blur

    def planes(self, matte: DeviceMatte) -> Sequence[Tensor]:
        return self._blur.planes(matte.planes, matte.alpha)


class _Uploaded:
    """Planes of a picture or of a video."""

    def __init__(self, background: Background, device: torch.device) -> None:
        self._background, self._device = background, device
        self._host: list[Samples] = []
        self._planes: tuple[Tensor, ...] = ()

    def planes(self, matte: DeviceMatte) -> Sequence[Tensor]:
        host = self._background.planes(matte.frame, _NO_ALPHA)
        if not self._host or host[0] is not self._host[0]:
            self._host, self._planes = host, upload(host, self._device)
        return self._planes
