"""One table: source format, size and extension to container, codec and pixel format."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vidmatte.errors import UsageError
from vidmatte.frames import (
    MATRIX_BT470BG,
    MATRIX_RGB,
    RANGE_FULL,
    RANGE_LIMITED,
    Colour,
    Layout,
    Orientation,
    VideoInfo,
    layout_of,
)
from vidmatte.sinks import _hardware as hardware

Encodes = Callable[[str, tuple[int, int]], bool]  # with this encoder, pictures of (width, height)
Content = Literal["opaque", "transparent", "matte"]
Kind = Literal["video", "sequence", "picture", "gif"]

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".avi": "avi",
    ".nut": "nut",
    ".gif": "gif",
    ".apng": "apng",
}
PICTURES = {".png": "png", ".webp": "libwebp", ".jpg": "mjpeg", ".jpeg": "mjpeg", ".tif": "tiff",
            ".tiff": "tiff"}  # fmt: skip
CODEC_NAMES = {
    "h264": "libx264",
    "avc": "libx264",
    "x264": "libx264",
    "hevc": "libx265",
    "h265": "libx265",
    "x265": "libx265",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "prores": "prores_ks",
    "webp": "libwebp",
}
# Which of our encoders each container may hold, the first being what a user would expect.
ALLOWED = {
    "mp4": ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4", *hardware.FORMATS),
    "mov": ("libx264", "libx265", "prores_ks", "qtrle", "png", "mjpeg", "mpeg4", *hardware.FORMATS),
    "matroska": ("libx264", "libx265", "ffv1", "libvpx-vp9", "libsvtav1", "prores_ks", "png",
                 "mjpeg", "utvideo", "huffyuv", "qtrle", "mpeg4", *hardware.FORMATS),
    "webm": ("libvpx-vp9", "libsvtav1"),
    "mpegts": ("libx264", "libx265", *hardware.FORMATS),
    "avi": ("libx264", "ffv1", "mjpeg", "utvideo", "huffyuv", "png", "mpeg4"),
    "nut": ("libx264", "libx265", "ffv1", "utvideo", "huffyuv", "png", "libvpx-vp9", "qtrle"),
    "gif": ("gif",),
    "apng": ("apng",),
}  # fmt: skip
TRANSPARENT_DEFAULT = {
    "mov": ("prores_ks", "yuva444p10le"),
    "webm": ("libvpx-vp9", "yuva420p"),
    "matroska": ("ffv1", ""),
    "nut": ("ffv1", ""),
    "gif": ("gif", "pal8"),
    "apng": ("apng", "rgba"),
}
# What each encoder takes (FFmpeg 8.1 as built into PyAV 18.1), only what we send it.
ENCODER_FORMATS = {
    "libx264": ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le",
                "gray", "gray10le"),
    "libx265": ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le",
                "yuv420p12le", "yuv422p12le", "yuv444p12le", "gray", "gray10le", "gray12le"),
    "libvpx-vp9": ("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuva420p"),
    "libsvtav1": ("yuv420p", "yuv420p10le"),
    "mpeg4": ("yuv420p",),
    "mjpeg": ("yuvj420p", "yuvj422p", "yuvj444p"),
    "prores_ks": ("yuv422p10le", "yuv444p10le", "yuva444p10le"),
    "ffv1": ("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "yuva420p",
             "yuva422p", "yuva444p", "yuv420p9le", "yuv422p9le", "yuv444p9le", "yuv420p10le",
             "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv422p12le", "yuv444p12le",
             "yuv420p16le", "yuv422p16le", "yuv444p16le", "yuva420p10le", "yuva422p10le",
             "yuva444p10le", "yuva422p12le", "yuva444p12le", "yuva420p16le", "yuva422p16le",
             "yuva444p16le", "gray", "gray16le", "bgr0", "bgra", "gbrp9le", "gbrp10le",
             "gbrp12le", "gbrp14le", "gbrap10le", "gbrap12le", "gbrap16le", "gbrp16le"),
    "qtrle": ("rgb24", "argb"),
    "png": ("rgb24", "rgba", "rgb48be", "rgba64be", "gray", "gray16be"),
    "apng": ("rgb24", "rgba", "rgb48be", "rgba64be", "gray", "gray16be"),
    "libwebp": ("bgra",),  # WebP's YUV is BT.601 limited and has no tags: libwebp converts
    "tiff": ("rgb24", "rgba", "rgb48le", "rgba64le", "gray", "gray16le"),
    "utvideo": ("yuv420p", "yuv422p", "yuv444p", "gbrp", "gbrap"),
    "huffyuv": ("yuv422p", "rgb24", "bgra"),
    "gif": ("pal8",),
    **hardware.FORMATS,
}  # fmt: skip
WITH_CRF = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", *hardware.FORMATS)
_PACKED = re.compile(r"(bgra|rgba|argb|abgr|rgba64\w*)|(rgb24|bgr24|bgr0|rgb48\w*)|(gray16be)")
_X26X = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower",
         "veryslow", "placebo")  # fmt: skip
PRESETS = {
    "libx264": _X26X,
    "libx265": _X26X,
    "libvpx-vp9": tuple(str(n) for n in range(9)),
    "libsvtav1": tuple(str(n) for n in range(14)),
    **dict.fromkeys(hardware.FORMATS, tuple(hardware.PRESETS)),
}
# Phones, browsers and QuickTime refuse 4:4:4: RGB, converted in any case, becomes what plays.
PLAYED = frozenset({"mp4", "mov"})
_PLAYED_CODECS = ("libx264", "libx265", *hardware.FORMATS)
HOLDS_ORIENTATION = frozenset({"mp4", "mov", "matroska"})


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What one output file is made of.

    `pix_fmt` is what the encoder gets; `options` are the encoder's private options. `turned`
    says that pictures are stored upright because the target cannot hold an orientation.
    `notes` are the lines that tell what is not as in the source.
    """

    kind: Kind
    container: str
    codec: str
    pix_fmt: str
    content: Content
    options: dict[str, str]
    turned: bool = False
    notes: tuple[str, ...] = ()


def plan_output(
    info: VideoInfo,
    suffix: str,
    content: Content,
    *,
    is_sequence: bool = False,
    codec: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    nvenc: Encodes | None = None,
) -> OutputPlan:
    """Decide how to write `content` of a source `info` under the extension `suffix`.

    `nvenc` says whether an NVIDIA encoder that is named takes pictures of a size (width, height)
    here: then it takes the place of x264 and x265 where that loses nothing. Raises UsageError
    for extensions that are unknown and for codecs or transparency that the target cannot hold,
    with a name that would work.
    """
    suffix = suffix.lower()
    source = _planar_layout(info.pix_fmt)
    if is_sequence or suffix in PICTURES:
        return _plan_pictures(info, suffix, content, source, is_sequence=is_sequence)
    container = _container_of(suffix)
    encoder = _encoder_of(container, suffix, content, source, codec)
    wanted = _wanted(source, content)
    if wanted.model == "rgb" and container in PLAYED and encoder in _PLAYED_CODECS:
        wanted = replace(wanted, model="yuv", shift_x=1, shift_y=1)
    usual, pix_fmt = TRANSPARENT_DEFAULT.get(container, ("", ""))
    if content != "transparent" or encoder != usual or not pix_fmt:
        pix_fmt = nearest_format(wanted, ENCODER_FORMATS[encoder])
    pix_fmt, notes = _fit_odd_size(info, encoder, pix_fmt)
    if nvenc is not None and codec is None and _suits_nvenc(info, container, encoder, pix_fmt):
        twin = hardware.TWINS[encoder]
        encoder = twin if nvenc(twin, (info.width, info.height)) else encoder
    turned = container not in HOLDS_ORIENTATION and info.orientation != Orientation()
    if content != "matte":
        notes += _format_notes(source, info, encoder, pix_fmt)
    if turned:
        notes += (f"{suffix} cannot hold an orientation: the pictures are turned upright",)
    notes += _unused_notes(encoder, crf, preset)
    kind: Kind = "gif" if container == "gif" else "video"
    options = encoder_options(encoder, content, crf, preset, pix_fmt)
    return OutputPlan(kind, container, encoder, pix_fmt, content, options, turned, notes)


def _container_of(suffix: str) -> str:
    if suffix in CONTAINERS:
        return CONTAINERS[suffix]
    known = " ".join(sorted((*CONTAINERS, *PICTURES)))
    shown = f"'{suffix}'" if suffix else "no extension"
    raise UsageError(f"cannot tell the output's format from {shown}", hint=f"use one of {known}")


def _encoder_of(
    container: str, suffix: str, content: Content, source: Layout, codec: str | None
) -> str:
    if codec is not None:
        return _asked_encoder(container, suffix, content, codec)
    if content == "transparent":
        if container not in TRANSPARENT_DEFAULT:
            raise UsageError(
                f"{suffix} cannot hold transparency",
                hint="name the output .mov, .webm, .mkv, .apng or frame_%04d.png",
            )
        return TRANSPARENT_DEFAULT[container][0]
    if content == "matte" and "ffv1" in ALLOWED[container]:
        return "ffv1"
    if content == "opaque" and source.bits > 8:
        for encoder in ("libx265", "libsvtav1"):
            if encoder in ALLOWED[container]:
                return encoder
    return ALLOWED[container][0]


def _asked_encoder(container: str, suffix: str, content: Content, codec: str) -> str:
    encoder = CODEC_NAMES.get(codec.lower(), codec.lower())
    if encoder not in ENCODER_FORMATS:
        known = " ".join(sorted(set(ENCODER_FORMATS) | set(CODEC_NAMES)))
        raise UsageError(f"unknown codec '{codec}'", hint=f"known: {known}")
    if encoder not in ALLOWED[container]:
        homes = [s for s, c in CONTAINERS.items() if encoder in ALLOWED[c]]
        raise UsageError(
            f"{suffix} cannot hold {codec}", hint=f"name the output {' or '.join(homes)}"
        )
    if content == "transparent" and not any(_has_alpha(f) for f in ENCODER_FORMATS[encoder]):
        raise UsageError(
            f"{codec} cannot hold transparency",
            hint="leave --codec out, or use prores, vp9, qtrle, ffv1 or png",
        )
    return encoder


def _planar_layout(pix_fmt: str) -> Layout:
    layout = layout_of(working_format(pix_fmt))
    assert layout is not None
    return layout


def _wanted(source: Layout, content: Content) -> Layout:
    """What the encoder should get: the source's layout with or without alpha, gray for mattes."""
    if content == "matte":
        return Layout("", "gray", 0, 0, 8 if source.bits <= 8 else 16, False)
    if source.model == "gray":
        source = replace(source, model="yuv", shift_x=1, shift_y=1)
    return replace(source, alpha=content == "transparent")


def _format_facts(pix_fmt: str) -> Layout:
    layout = layout_of(pix_fmt)
    if layout is not None:
        return layout
    match = _PACKED.fullmatch(pix_fmt)
    assert match is not None, pix_fmt
    deep = 16 if any(n in pix_fmt for n in ("48", "64", "16")) else 8
    model: Literal["rgb", "gray"] = "gray" if match[3] else "rgb"
    return Layout(pix_fmt, model, 0, 0, deep, match[1] is not None)


def _has_alpha(pix_fmt: str) -> bool:
    return pix_fmt == "pal8" or _format_facts(pix_fmt).alpha


def nearest_format(wanted: Layout, offered: tuple[str, ...]) -> str:
    """Choose the offered pixel format that loses least of `wanted`, then the smallest.

    Losing alpha weighs most, then colour model, depth, and chroma resolution.
    """

    def cost(pix_fmt: str) -> tuple[int, ...]:
        if pix_fmt == "pal8":
            return (9,)
        have = _format_facts(pix_fmt)
        return (
            wanted.alpha != have.alpha,
            0 if have.model == wanted.model else 2 if have.model == "gray" else 1,
            max(0, wanted.bits - have.bits),
            max(0, have.shift_x - wanted.shift_x) + max(0, have.shift_y - wanted.shift_y),
            have.bits - wanted.bits,
            -have.shift_x - have.shift_y,
        )

    return min(offered, key=cost)


def _fit_odd_size(info: VideoInfo, encoder: str, pix_fmt: str) -> tuple[str, tuple[str, ...]]:
    """H.264 and HEVC refuse odd sizes with subsampled chroma: widen the chroma and say so."""
    layout = layout_of(pix_fmt)
    if encoder not in (*_PLAYED_CODECS, "libsvtav1") or layout is None:
        return pix_fmt, ()
    if layout.model != "yuv":
        return pix_fmt, ()
    odd_x = info.width % (1 << layout.shift_x) != 0
    odd_y = info.height % (1 << layout.shift_y) != 0
    if not (odd_x or odd_y):
        return pix_fmt, ()
    full = re.sub(r"4\d\d", "444", pix_fmt)
    if full not in ENCODER_FORMATS[encoder]:
        return pix_fmt, ()
    size = f"{info.width}x{info.height}"
    return full, (f"{size} is odd: encoded with full chroma (4:4:4); some players refuse that",)


def _suits_nvenc(info: VideoInfo, container: str, encoder: str, pix_fmt: str) -> bool:
    """Whether NVENC may stand in: not where fields or HDR's static metadata would be lost."""
    twin = hardware.TWINS.get(encoder, "")
    shortest, longest = hardware.SIDES.get(twin, (0, 0))
    sides = info.width, info.height
    return (
        twin in ALLOWED[container]
        and "420" in pix_fmt
        and pix_fmt in hardware.FORMATS.get(twin, ())
        and shortest <= min(sides)
        and max(sides) <= longest
        and info.field_order == "progressive"
        and not (info.mastering_display or info.content_light)
    )


def _format_notes(source: Layout, info: VideoInfo, encoder: str, pix_fmt: str) -> tuple[str, ...]:
    if pix_fmt == "pal8":
        return ()
    have = _format_facts(pix_fmt)
    notes = []
    if source.model == "rgb" and have.model == "yuv":
        notes.append(f"RGB source is encoded as YUV ({pix_fmt}); --codec ffv1 in .mkv keeps RGB")
    if have.bits < source.bits:
        notes.append(f"{source.bits} bits become {have.bits} ({encoder} holds no more)")
    if source.model == "yuv" and (have.shift_x, have.shift_y) > (source.shift_x, source.shift_y):
        notes.append(f"chroma is reduced to {pix_fmt}: {encoder} holds no finer")
    if encoder == "prores_ks" and fixed_colour(encoder, info.colour) is not None:
        notes.append("full range becomes limited range (ProRes holds no other)")
    if (info.mastering_display or info.content_light) and encoder != "libx265":
        notes.append(f"HDR mastering and light levels are left out: {encoder} does not carry them")
    if info.colour.is_hdr and have.bits <= 8:
        notes.append("HDR in 8 bits will show banding")
    return tuple(notes)


def fixed_colour(encoder: str, source: Colour) -> Colour | None:
    """Return the matrix and range that an encoder's files are always read in, or None."""
    if encoder == "mjpeg":  # JFIF
        return Colour(MATRIX_BT470BG, RANGE_FULL, source.primaries, source.transfer)
    if encoder == "prores_ks" and source.range == RANGE_FULL and source.matrix != MATRIX_RGB:
        return replace(source, range=RANGE_LIMITED)  # neither ProRes nor its track has a flag
    return None


def _plan_pictures(
    info: VideoInfo, suffix: str, content: Content, source: Layout, *, is_sequence: bool
) -> OutputPlan:
    if suffix not in PICTURES:
        known = " ".join(PICTURES)
        raise UsageError(f"cannot write pictures as '{suffix}'", hint=f"use one of {known}")
    encoder = PICTURES[suffix]
    if content == "transparent" and encoder == "mjpeg":
        raise UsageError(f"{suffix} cannot hold transparency", hint="name the output .png or .webp")
    wanted = _wanted(source, content)
    if encoder in ("png", "tiff") and content != "matte":
        wanted = replace(wanted, model="rgb", bits=8 if source.bits <= 8 else 16)
    if encoder == "mjpeg":
        wanted = replace(wanted, model="yuv", bits=8)
    pix_fmt = nearest_format(wanted, ENCODER_FORMATS[encoder])
    kind: Kind = "sequence" if is_sequence else "picture"
    options = encoder_options(encoder, content, None, None, pix_fmt)
    turned = info.orientation != Orientation()
    return OutputPlan(kind, "", encoder, pix_fmt, content, options, turned)


def encoder_options(
    encoder: str, content: Content, crf: int | None, preset: str | None, pix_fmt: str
) -> dict[str, str]:
    """Private options of an encoder for this content; `crf` and `preset` as the user gave them."""
    _check_preset(encoder, preset)
    lossless = content == "matte" and crf is None
    if encoder in ("libx264", "libx265"):
        default = 18 if encoder == "libx264" else 20
        quality = {"qp": "0"} if lossless and encoder == "libx264" else {
            "crf": str(default if crf is None else crf)}  # fmt: skip
        if lossless and encoder == "libx265":
            quality = {"x265-params": "lossless=1"}
        return {"preset": preset or "veryfast", **quality}
    if encoder in hardware.FORMATS:
        return hardware.nvenc_options(encoder, crf, preset, lossless=lossless)
    if encoder == "libvpx-vp9":
        options = {"deadline": "good", "cpu-used": preset or "5", "row-mt": "1", "b": "0"}
        options |= {"lossless": "1"} if lossless else {"crf": str(24 if crf is None else crf)}
        if _has_alpha(pix_fmt):
            options["auto-alt-ref"] = "0"  # libvpx refuses alternate references with alpha
        return options
    if encoder == "libsvtav1":
        return {"preset": preset or "9", "crf": str(24 if crf is None else crf)}
    if encoder == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    if encoder == "prores_ks":
        return {"profile": "4444" if "444" in pix_fmt else "hq", "alpha_bits": "16"}
    if encoder in ("mjpeg", "mpeg4"):  # else FFmpeg aims at 200 kbit/s, whatever the size
        return {"qmin": "2", "qmax": "2"}
    if encoder == "libwebp":
        return {"lossless": "1"} if content == "matte" else {"quality": "90"}
    return {}


def _unused_notes(encoder: str, crf: int | None, preset: str | None) -> tuple[str, ...]:
    """Name the options that the user gave and this encoder does not have."""
    if encoder in WITH_CRF:
        return ()
    given = [name for name, value in (("--crf", crf), ("--preset", preset)) if value is not None]
    return (f"{' and '.join(given)} do nothing: {encoder} has one quality",) if given else ()


def _check_preset(encoder: str, preset: str | None) -> None:
    known = PRESETS.get(encoder)
    if preset is not None and known is not None and preset not in known:
        raise UsageError(f"unknown preset '{preset}'", hint=f"{encoder} knows {', '.join(known)}")


def working_format(pix_fmt: str) -> str:
    """Name the planar format that holds everything of `pix_fmt`.

    Planar formats stay. Semi-planar and packed YUV are only re-ordered, RGB and palettes become
    planar RGB, which loses nothing.
    """
    if layout_of(pix_fmt) is not None:
        return pix_fmt.replace("yuvj", "yuv")
    exact = {
        "nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p", "nv24": "yuv444p",
        "nv42": "yuv444p", "p010le": "yuv420p10le", "p012le": "yuv420p12le",
        "p016le": "yuv420p16le", "p210le": "yuv422p10le", "p216le": "yuv422p16le",
        "p212le": "yuv422p12le", "p410le": "yuv444p10le", "p412le": "yuv444p12le",
        "p416le": "yuv444p16le", "nv20le": "yuv422p10le", "y216le": "yuv422p16le",
        "v30xle": "yuv444p10le", "xyz12le": "gbrp12le",
        "uyvy422": "yuv422p", "yuyv422": "yuv422p", "yvyu422": "yuv422p",
        "uyyvyy411": "yuv411p", "y210le": "yuv422p10le", "y212le": "yuv422p12le",
        "v210": "yuv422p10le", "xv30le": "yuv444p10le", "xv36le": "yuv444p12le",
        "vuyx": "yuv444p", "vuya": "yuva444p", "ayuv": "yuva444p", "uyva": "yuva444p",
        "ayuv64le": "yuva444p16le", "x2rgb10le": "gbrp10le", "x2bgr10le": "gbrp10le",
        "gray16be": "gray16le", "gray9be": "gray9le", "gray10be": "gray10le",
        "gray12be": "gray12le", "ya8": "gbrap", "ya16le": "gbrap16le", "ya16be": "gbrap16le",
        "monob": "gray", "monow": "gray", "grayf32le": "gray16le", "grayf32be": "gray16le",
    }  # fmt: skip
    little = re.sub("be$", "le", pix_fmt.replace("msb", ""))
    for name in (pix_fmt, little):
        if name in exact:
            return exact[name]
    if layout_of(little) is not None:
        return little
    deep = any(n in pix_fmt for n in ("48", "64", "96", "128", "f16", "f32"))
    alpha = pix_fmt == "pal8" or bool(re.search(r"rgba|bgra|argb|abgr|gbrap", pix_fmt))
    return f"gbr{'a' if alpha else ''}p{'16le' if deep else ''}"
