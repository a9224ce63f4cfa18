"""Make the one small upright RGB picture that the network sees, and bring its answer back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidmatte.compute.cpu.colour import (
    BT709_TO_BT2020,
    HLG_GAMMA,
    HLG_LUMA,
    HLG_PEAK_NIT,
    REFERENCE_WHITE_NIT,
    effective_colour,
    hdr_decode_table,
    rgb_matrix,
    sdr_encode_table,
)
from vidmatte.compute.cuda.filters import scale_weights
from vidmatte.frames import TRANSFER_HLG

if TYPE_CHECKING:
    from torch import Tensor

    from vidmatte.frames import Layout, VideoInfo

# Decoders that give chroma of no stated place the left one of the luma that it covers, as their
# standards do (H.264, E.2.1; H.265, E.3.1). swscale reads it so, and that of all others centred;
# PyAV does not tell what a file states, which is rare.
_LEFT_SITED = ("h264", "hevc", "mpeg2video", "mpeg4", "dvvideo")


class Preparer:
    """Scales planes of one source to the network's size, and reads their colour there.

    `size` is the (height, width) of the network's upright picture; the picture is stretched to
    it: area means where it shrinks, linear where it grows.

    A plane is scaled by two dense matrices, which costs 1.7 GFLOP in all for 1080p to 320x192. They
    are float32, as PyTorch multiplies it unless told otherwise, and vidmatte never tells it. A
    process that allows TF32 gets samples up to 1 level of 255 darker, 2 from 16 bits (simulated).
    """

    def __init__(
        self, info: VideoInfo, layout: Layout, size: tuple[int, int], device: torch.device
    ) -> None:
        self._orientation = info.orientation
        hdr = info.colour.is_hdr
        self._peak = 65535 if hdr else 255
        self._tone_map = _ToneMap(info.colour.transfer, device) if hdr else None
        matrix = rgb_matrix(effective_colour(info, layout), layout, self._peak, 0)
        self._matrix = torch.tensor(matrix[:, :-1], device=device)
        self._offset = torch.tensor(matrix[:, -1:], device=device)
        stored = size[::-1] if info.orientation.swaps_sides else size
        self._scales = [
            (
                _row_weights(info, layout.shift_y if k else 0, stored[0], device),
                _column_weights(info, layout.shift_x if k else 0, stored[1], device),
            )
            for k in range(self._matrix.shape[1])
        ]

    def prepare(self, planes: Sequence[Tensor]) -> Tensor:
        """Return the picture, (H, W, 3) uint8 RGB in the network's size, upright, contiguous.

        `planes` are those of `layout` in their stored orientation; an alpha plane is ignored. PQ
        and HLG are tone-mapped by one fixed curve. Nothing is stretched to a picture's own range.
        """
        small = torch.stack(
            [
                rows @ plane.to(torch.float32) @ columns.T
                for plane, (rows, columns) in zip(planes, self._scales, strict=False)
            ]
        )
        values = torch.addmm(self._offset, self._matrix, small.flatten(1))
        values = values.clamp_(0, self._peak).round_().view(3, *small.shape[1:])
        rgb = values.to(torch.uint8) if self._tone_map is None else self._tone_map(values)
        mirrored = rgb.flip(2) if self._orientation.mirror else rgb
        upright = torch.rot90(mirrored, -(self._orientation.rotate_cw // 90), (1, 2))
        return upright.permute(1, 2, 0).contiguous()

    def to_stored(self, probability: Tensor) -> Tensor:
        """Bring upright answers (..., h, w) to the stored orientation, contiguous."""
        turned = torch.rot90(probability, self._orientation.rotate_cw // 90, (-2, -1))
        return (turned.flip(-1) if self._orientation.mirror else turned).contiguous()


class _ToneMap:
    """Brings PQ or HLG in BT.2020 primaries to 8-bit sRGB, as `compute.cpu.colour.tone_map`."""

    def __init__(self, transfer: int, device: torch.device) -> None:
        self._decode = torch.tensor(hdr_decode_table(transfer), device=device)
        self._encode = torch.tensor(sdr_encode_table(), device=device)
        primaries = np.linalg.inv(BT709_TO_BT2020).astype(np.float32)
        self._primaries = torch.tensor(primaries, device=device)
        self._luma = None
        if transfer == TRANSFER_HLG:
            self._luma = torch.tensor(HLG_LUMA[:, None, None], device=device)

    def __call__(self, rgb_3HW: Tensor) -> Tensor:
        """Map whole numbers 0..65535 to uint8."""
        linear = self._decode[rgb_3HW.to(torch.int32)]
        if self._luma is not None:
            luminance = (linear * self._luma).sum(0).clamp_(min=1e-9)
            linear *= luminance ** (HLG_GAMMA - 1) * (HLG_PEAK_NIT / REFERENCE_WHITE_NIT)
        linear = (self._primaries @ linear.flatten(1)).view(linear.shape)
        steps = (linear.clamp_(0, 64) / 64).sqrt_() * (len(self._encode) - 1)
        return self._encode[steps.round_().to(torch.int32)]


def _column_weights(info: VideoInfo, shift: int, count: int, device: torch.device) -> Tensor:
    """Return the (count, columns of a plane) matrix that scales the rows of a plane."""
    is_left = info.codec in _LEFT_SITED
    offset = 0.5 - 0.5 / (1 << shift) if is_left else 0.0
    return scale_weights(-(-info.width >> shift), count, offset).to(device)


def _row_weights(info: VideoInfo, shift: int, count: int, device: torch.device) -> Tensor:
    """Return the (count, rows of a plane) matrix that scales the columns of a plane.

    Fields of interlaced sources are scaled each by itself, as swscale does; in a field, chroma
    lies nearer to the rows of luma between it and the other field's.
    """
    rows = -(-info.height >> shift)
    if info.field_order == "progressive":
        return scale_weights(rows, count).to(device)
    weights = torch.zeros(count, rows)
    for field, sign in ((0, 1), (1, -1)):
        part = weights[field::2, field::2]
        part += scale_weights(part.shape[1], part.shape[0], sign * (0.25 - 0.25 / (1 << shift)))
    return weights.to(device)
