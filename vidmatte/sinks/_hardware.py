"""NVENC, NVIDIA's encoder: what it takes, how its options are called, whether one is here."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

# The software encoder whose place each takes.
TWINS = {"libx264": "h264_nvenc", "libx265": "hevc_nvenc"}
FORMATS = {
    "h264_nvenc": ("yuv420p", "yuv444p"),  # 10 bits only from Blackwell on
    "hevc_nvenc": ("yuv420p", "yuv444p", "yuv420p10le"),
}
SENT_AS = {("hevc_nvenc", "yuv420p10le"): "p010le"}  # the same samples, as NVENC reads them
# What all cards with NVENC encode: NVIDIA's Video Encode and Decode GPU Support Matrix, and the
# smallest of its API's NV_ENC_CAPS_WIDTH_MIN and HEIGHT_MIN (145x49 for H.264), rounded up.
SIDES = {"h264_nvenc": (160, 4096), "hevc_nvenc": (160, 8192)}
# The names of x264 and x265 mean NVENC's own that is about as thorough for its kind.
PRESETS = {
    **{f"p{n}": f"p{n}" for n in range(1, 8)},
    "ultrafast": "p1",
    "superfast": "p2",
    "veryfast": "p3",
    "faster": "p4",
    "fast": "p4",
    "medium": "p5",
    "slow": "p6",
    "slower": "p7",
    "veryslow": "p7",
    "placebo": "p7",
}
_DEFAULT_CQ = {"h264_nvenc": 18, "hevc_nvenc": 20}
_CQ = 1, 51  # 0 would leave the quality to a bit rate
_TRIED_SIDE = 256


def nvenc_options(
    encoder: str, crf: int | None, preset: str | None, *, lossless: bool
) -> dict[str, str]:
    """Return an encoder's private options: constant quality, the scale that of H.264's QP."""
    options = {"preset": PRESETS[preset or "p4"]}
    if lossless:
        return options | {"tune": "lossless"}
    quality = _DEFAULT_CQ[encoder] if crf is None else min(max(crf, _CQ[0]), _CQ[1])
    return options | {"rc": "vbr", "cq": str(quality), "b": "0"}


@lru_cache(maxsize=32)
def has_nvenc(
    encoder: str, size: tuple[int, int] = (_TRIED_SIDE, _TRIED_SIDE), *, gpu: int | None = None
) -> bool:
    """Whether GPU number `gpu` (None: any) encodes with `encoder` ("h264_nvenc", "hevc_nvenc").

    Opens an encoder for pictures of `size` (width, height), of 10 bits for HEVC, and closes it; the
    answer is kept. Data-centre cards decode but have no encoder.
    """
    import av

    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height = size
    context.pix_fmt = "p010le" if encoder == "hevc_nvenc" else "yuv420p"
    context.time_base = Fraction(1, 25)
    context.options = {} if gpu is None else {"gpu": str(gpu)}
    try:
        context.open()
    except (av.FFmpegError, OSError, ValueError):
        return False
    return True
