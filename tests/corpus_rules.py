"""Decide whether an output is the source's equal, as the corpus manifest describes the source.

Every rule looks at one promise and yields one sentence per breach; no sentence means it is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from corpus_manifest import Entry
from corpus_media import UPRIGHT, Media, Picture, Sound

# 1 ms for containers that count milliseconds, and a tenth for the rounding of the reader.
TIME_TOLERANCE_S = 0.0011
# Beyond a millisecond an output's own time base is no excuse for a picture shown late.
TIME_BASE_ALLOWANCE_S = 0.01
# Sound that begins before 0, by its encoder's priming, moves every stream of a Matroska file.
START_TOLERANCE_S = 0.03
START_WITHIN_S = 1.5  # a stream that is cut from a broadcast may begin with sound alone
RATE_TOLERANCE = 0.01
# The rate is frames over duration; movie clocks of a millisecond cut durations at edits.
RATE_DURATION_TOLERANCE_S = 0.0005
SPAN_TOLERANCE_S = 0.25
SOUND_DURATION_TOLERANCE_S = 0.12
SOUND_START_TOLERANCE_S = 0.03
# Encoder loss at the default quality, of 255: over the picture, in one of 16 x 16 blocks, and of
# a flat patch against what the generator drew (which passed through one more encoder).
MEAN_COLOUR_TOLERANCE = 2.0
BLOCK_COLOUR_TOLERANCE = 16.0
# RGB in .mp4 and .mov loses half of its chroma each way, and says so: blocks at hard edges of small
# opaque parts change by a few levels more (measured: 16.2, mean 3.2). Flat patches stay strict.
CHROMA_TOLERANCE = 4.0
PATCH_TOLERANCE = 4.0
DRAWN_PATCH_TOLERANCE = 8.0
# Blocks with an edge that scaling moved, and blocks that are one sample of a tiny picture.
ROUGH_FACTOR, TINY_FACTOR = 3.0, 8.0
# A palette of 256 colours, dithered.
PALETTE_TOLERANCE = 12.0
MILLISECOND_CONTAINERS = ("matroska", "flv", "webm", "asf")
SOUND_THAT_FITS = {
    ".mp4": r"aac|mp3|mp2|e?ac3|opus|flac|alac",
    ".mov": r"aac|mp3|mp2|e?ac3|opus|flac|alac|pcm_.*",
    ".webm": r"opus|vorbis",
    ".mkv": r"(?!wma).*",  # PyAV refuses to mux Windows Media Audio into Matroska
}
TAGS_THAT_CHANGE = {
    "major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One output to judge: `said` is what the command printed, `suffix` the output's."""

    entry: Entry
    source: Media
    output: Media
    suffix: str
    said: str
    drawn_patches: list[list[int]]
    lossless: bool = False


def complaints(case: Case, *, content: bool = True) -> list[str]:
    """Apply every rule; an empty list means that the output is the source's equal.

    Pass `content=False` if the pictures were matted, so that their contents must differ.
    """
    rules = (*RULES, *CONTENT_RULES) if content else RULES
    return [sentence for rule in rules for sentence in rule(case)]


def _frames(case: Case) -> Iterator[str]:
    video, found = case.entry.video, len(case.output.pictures)
    low = video.get("frames", video.get("frames_min", 1))
    high = video.get("frames", video.get("frames_max", found))
    if not low <= found <= high:
        yield f"{found} frames instead of {low if low == high else f'{low}..{high}'}"


def _bar_codes(case: Case) -> Iterator[str]:
    video = case.entry.video
    ids = case.output.ids
    if case.entry.ids is not None and ids != case.entry.ids:
        yield f"frames {_runs(ids)} instead of {_runs(case.entry.ids)}"
    if "ids_last" in video and ids and ids[-1] != video["ids_last"]:
        yield f"last frame is {ids[-1]} instead of {video['ids_last']}"


def _order(case: Case) -> Iterator[str]:
    """Damaged or not: what is readable is in order, as in the source."""
    if case.entry.ids is not None or case.entry.group != "damage":
        return
    readable = [i for i in case.output.ids if i is not None]
    if not readable:
        yield "no frame has a readable bar code"
    lost = sorted(set(_readable(case.source)) - set(readable))
    if lost:
        yield f"frames {_runs(lost)} can be decoded, but are missing"
    if any(b < a for a, b in pairwise(readable)):
        yield f"frames out of order: {_runs(readable)}"


def _readable(media: Media) -> dict[int, Picture]:
    """Pictures by bar code, without those that a decoder's concealment shows twice."""
    times_seen = Counter(media.ids)
    return {
        p.frame_id: p
        for p in media.pictures
        if p.frame_id is not None and times_seen[p.frame_id] == 1
    }


def _times(case: Case) -> Iterator[str]:
    times = case.output.times_s
    if case.suffix == ".png":  # a picture has no time
        return
    if len(times) < len(case.output.pictures):
        yield f"{len(case.output.pictures) - len(times)} frames without a time"
    if any(b <= a for a, b in pairwise(times)):
        yield "time stamps do not increase"
    if not times:
        return
    broken = case.entry.has_broken_times or (
        case.entry.group == "change" and any(_late(case.source.times_s))
    )
    yield from _span(case, times) if broken else _stamps(case, times)
    yield from _start(case, times[0])


def _start(case: Case, first: float) -> Iterator[str]:
    """The first frame is where the source's was; clocks that begin anywhere begin at 0."""
    video, known = case.entry.video, case.source.times_s
    clock_is_free = re.search("mpegts|mpeg|flv|dv|h264|hevc", case.source.container)
    start = video.get("start", known[0] if known else 0.0)
    if case.entry.group == "damage":
        both = set(_readable(case.output)) & set(_readable(case.source))
        if not both:
            return
        first = _readable(case.output)[min(both)].time_s or 0.0
        start = _readable(case.source)[min(both)].time_s or 0.0
    if case.entry.has_broken_times or clock_is_free:
        if abs(first) > START_WITHIN_S:
            yield f"first frame at {first:.3f} s instead of about 0"
    elif abs(first - start) > video.get("start_tol", START_TOLERANCE_S) + _allowance(case):
        yield f"first frame at {first:.3f} s instead of {start:.3f} s"


def _stamps(case: Case, times: list[float]) -> Iterator[str]:
    expected = _expected_times(case)
    video = case.entry.video
    allowed = max(video.get("pts_tol", 0.0), TIME_TOLERANCE_S) + _allowance(case)
    if _has_pairs(video.get("pts")):
        allowed += max(b - a for a, b in pairwise(expected))
    if len(expected) != len(times):
        return
    shifts = [(b - times[0]) - (a - expected[0]) for a, b in zip(expected, times, strict=True)]
    worst = int(np.argmax(np.abs(shifts)))
    if abs(shifts[worst]) > allowed:
        yield f"frame {worst} is shown {shifts[worst] * 1000:+.1f} ms from its time"


def _expected_times(case: Case) -> list[float]:
    video = case.entry.video
    if "pts" in video:
        return [float(t) for t in video["pts"]]
    if "fps" in video and "frames" in video:
        return [float(i / Fraction(video["fps"])) for i in range(video["frames"])]
    return _times_by_bar_code(case) if case.entry.group == "damage" else case.source.times_s


def _late(times: list[float]) -> list[bool]:
    """Which pictures a decoder hands out after a later one; they have to be moved."""
    return [i > 0 and t <= max(times[:i]) for i, t in enumerate(times)]


def _times_by_bar_code(case: Case) -> list[float]:
    """Expect the source's times of the pictures that both could read; the rest as they are."""
    late = {p.frame_id for p, moved in zip(
        case.source.pictures, _late(case.source.times_s), strict=False) if moved}  # fmt: skip
    known = {i: p for i, p in _readable(case.source).items() if i not in late}
    both = [i for i in _readable(case.output) if i in known]
    if not both:
        return []
    first = _readable(case.output)[both[0]]
    base = (known[both[0]].time_s or 0.0) - (first.time_s or 0.0)
    return [
        (known[i].time_s or 0.0) - base if i in both and i is not None else t
        for i, t in zip(case.output.ids, case.output.times_s, strict=True)
    ]


def _has_pairs(pts: list[float] | None) -> bool:
    return bool(pts) and len(set(pts or [])) < len(pts or [])


def _span(case: Case, times: list[float]) -> Iterator[str]:
    rate = float(case.source.average_rate) or 25.0
    span, expected = times[-1] - times[0], (len(times) - 1) / rate
    if abs(span - expected) > SPAN_TOLERANCE_S:
        yield f"lasts {span:.2f} s instead of about {expected:.2f} s"


def _allowance(case: Case) -> float:
    return min(float(case.output.time_base), TIME_BASE_ALLOWANCE_S)


def _rate(case: Case) -> Iterator[str]:
    if "fps" not in case.entry.video or case.suffix in (".gif", ".apng", ".png"):
        return
    wanted, found = Fraction(case.entry.video["fps"]), case.output.average_rate
    exact = case.suffix in (".mp4", ".mov") and not re.search(
        "|".join(MILLISECOND_CONTAINERS), case.source.container
    )
    if exact and found:
        frames = len(case.output.pictures)
        bad = abs(frames / found - frames / wanted) > RATE_DURATION_TOLERANCE_S
    else:
        bad = abs(found / wanted - 1) > RATE_TOLERANCE
    if bad:
        yield f"average frame rate {found} instead of {wanted}"


def _geometry(case: Case) -> Iterator[str]:
    output, wanted = case.output, tuple(case.entry.video.get("stored", ()))
    sar = Fraction(case.entry.video.get("sar", "1:1").replace(":", "/"))
    sizes = {(p.width, p.height) for p in output.pictures}
    swapped = tuple(case.entry.video.get("display", ()))
    if wanted and output.turn == UPRIGHT != case.entry.turn and sizes == {swapped}:
        wanted = swapped
        sar = 1 / sar if case.entry.video["rotate_cw"] in (90, 270) else sar
    elif output.turn != case.entry.turn:
        yield f"display matrix {output.turn} instead of {case.entry.turn}"
    if wanted and sizes != {wanted}:
        yield f"size {sorted(sizes)} instead of {wanted}"
    if output.sar != sar:
        yield f"sample aspect ratio {output.sar} instead of {sar}"


def _depth(case: Case) -> Iterator[str]:
    if case.suffix in (".gif", ".png", ".apng"):
        return
    source, output = (av.VideoFormat(m.pix_fmt, 64, 64) for m in (case.source, case.output))
    wanted = min(case.entry.video.get("bits", 8), source.components[0].bits)
    found = output.components[0].bits
    if found < wanted and not (found >= 10 and re.search(r"\bbits?\b", case.said)):
        yield f"{found} bits per sample ({output.name}) instead of {wanted} ({source.name})"
    if not source.is_rgb and len(source.components) >= 3 and not output.is_rgb:
        width, height = output.chroma_width(64), output.chroma_height(64)
        if width < source.chroma_width(64) or height < source.chroma_height(64):
            yield f"chroma of {output.name} is coarser than that of {source.name}"


def _colour_tags(case: Case) -> Iterator[str]:
    if case.suffix in (".gif", ".png", ".apng"):
        return
    was_rgb = av.VideoFormat(case.source.pix_fmt).is_rgb
    is_rgb = av.VideoFormat(case.output.pix_fmt).is_rgb
    for name, was in case.source.colour_tags.items():
        found = case.output.colour_tags[name]
        if (name in ("matrix", "range") and was_rgb != is_rgb) or was == found:
            continue
        if name == "range" and {was, found} == {"unknown", "pc" if is_rgb else "tv"}:
            continue
        if name == "matrix" and {was, found} <= {"bt470bg", "smpte170m"}:
            continue
        if name == "matrix" and is_rgb:
            continue
        yield f"{name} tagged {found} instead of {was}"
    for name, values in case.source.hdr.items():
        if name not in case.output.hdr and re.search("HDR|mastering|light level", case.said):
            continue
        if case.output.hdr.get(name) != values:
            yield f"{name} {case.output.hdr.get(name, 'lost')} instead of {values}"


def _interlace(case: Case) -> Iterator[str]:
    wanted = case.entry.video.get("interlaced", case.source.field_order)
    if case.suffix not in (".gif", ".png", ".apng") and case.output.field_order != wanted:
        yield f"field order {case.output.field_order} instead of {wanted}"


def _colours(case: Case) -> Iterator[str]:
    if case.entry.group == "damage" or len(case.source.pictures) != len(case.output.pictures):
        return
    worst, where, worst_mean = 0.0, 0, 0.0
    pairs = zip(case.source.pictures, case.output.pictures, strict=True)
    for index, (was, now) in enumerate(pairs):
        off = np.abs(was.colour - now.colour).max(axis=2)[was.opaque]
        if off.size and off.max() > worst:
            worst, where = float(off.max()), index
        worst_mean = max(worst_mean, float(off.mean()) if off.size else 0.0)
    extra, factor = _colour_slack(case)
    halved = CHROMA_TOLERANCE if "RGB source is encoded as YUV (yuv420" in case.said else 0.0
    if worst > BLOCK_COLOUR_TOLERANCE * factor + extra + halved:
        yield f"colours of frame {where} are off by up to {worst:.1f} of 255"
    elif worst_mean > MEAN_COLOUR_TOLERANCE * factor + extra + halved / 2:
        yield f"colours are off by {worst_mean:.1f} of 255 on average"


def _colour_slack(case: Case) -> tuple[float, float]:
    """What to add to colour tolerances, and the factor for pictures that are scaled or tiny."""
    bits = case.entry.video.get("bits", 8)
    palette = PALETTE_TOLERANCE if case.suffix == ".gif" else 0.0
    rounding = 255 / (2**bits - 1) / 2 if bits < 8 else 0.0
    sides = case.output.width, case.output.height
    if max(sides) < 32:
        return palette + rounding, TINY_FACTOR
    rough = case.entry.group == "change" or min(sides) < 32
    return palette + rounding, ROUGH_FACTOR if rough else 1.0


def _patches(case: Case) -> Iterator[str]:
    if case.suffix == ".gif" or not case.output.pictures or case.entry.group == "damage":
        return
    was, now = case.source.pictures[0].patches, case.output.pictures[0].patches
    if not was or not now or min(case.output.width, case.output.height) < 32:
        return
    off = float(np.abs(np.array(was) - np.array(now)).max())
    if off > PATCH_TOLERANCE + _colour_slack(case)[0]:
        yield f"patches differ from the source's by {off:.1f} of 255"
    if case.entry.video.get("patches"):
        off = float(np.abs(np.array(case.drawn_patches) - np.array(now)).max())
        if off > DRAWN_PATCH_TOLERANCE:
            yield f"patches differ from the drawn ones by {off:.1f} of 255"


def _transparency(case: Case) -> Iterator[str]:
    """Where the source was transparent the new background shows: one colour, or nothing."""
    if not case.entry.video.get("alpha") or not case.output.pictures:
        return
    for index, (was, now) in enumerate(
        zip(case.source.pictures, case.output.pictures, strict=False)
    ):
        if not was.clear.any() or now.clear[was.clear].all():
            continue
        spread = float(np.ptp(now.colour[was.clear], axis=0).max())
        if now.clear[was.clear].any() or spread > BLOCK_COLOUR_TOLERANCE:
            yield f"frame {index} shows the source where the source is transparent"
            return


def _lossless(case: Case) -> Iterator[str]:
    if not case.lossless or len(case.source.pictures) != len(case.output.pictures):
        return
    pairs = zip(case.source.pictures, case.output.pictures, strict=True)
    for index, (was, now) in enumerate(pairs):
        mask = was.planes["A"] == was.planes["A"].max() if "A" in was.planes else None
        for name, samples in was.planes.items():
            found = now.planes.get(name)
            if name == "A" or (was.width, was.height) != (now.width, now.height):
                continue
            if found is None or found.shape != samples.shape or found.dtype != samples.dtype:
                if mask is None and case.entry.group != "change":
                    yield f"plane {name} of frame {index} has another layout"
                    return
                continue
            differs = samples != found
            if mask is not None:
                differs = differs & mask if mask.shape == differs.shape else differs & False
            if differs.any():
                most = int(np.abs(samples.astype(int) - found.astype(int))[differs].max())
                yield (
                    f"plane {name} of frame {index}: {int(differs.sum())} of {differs.size} "
                    f"samples differ, by up to {most}"
                )
                return


def _sound(case: Case) -> Iterator[str]:
    if case.suffix in (".gif", ".png", ".apng"):
        return
    wanted = case.entry.props.get("audio")
    count = len(case.source.sounds) if wanted is None else len(wanted)
    if len(case.output.sounds) != count:
        yield f"{len(case.output.sounds)} sound tracks instead of {count}"
        return
    for index, (was, now) in enumerate(zip(case.source.sounds, case.output.sounds, strict=True)):
        row = {} if wanted is None else wanted[index]
        for sentence in _track(case, was, now, row):
            yield f"sound {index}: {sentence}"


def _track(case: Case, was: Sound, now: Sound, row: dict[str, Any]) -> Iterator[str]:
    if now.channels != row.get("channels", was.channels):
        yield f"{now.channels} channels instead of {row.get('channels', was.channels)}"
    resampled = now.codec == "opus" != was.codec
    if now.rate != row.get("rate", was.rate) and not resampled:
        yield f"{now.rate} Hz instead of {row.get('rate', was.rate)}"
    duration = row.get("duration", was.duration_s)
    if abs(now.duration_s - duration) > SOUND_DURATION_TOLERANCE_S:
        yield f"lasts {now.duration_s:.3f} s instead of {duration:.3f} s"
    if now.end_s - now.start_s > now.duration_s + SOUND_DURATION_TOLERANCE_S:
        hole = now.end_s - now.start_s - now.duration_s
        if hole > was.end_s - was.start_s - was.duration_s + SOUND_DURATION_TOLERANCE_S:
            yield f"has a hole of {hole:.3f} s"
    yield from _sound_start(case, was, now, row)
    # MP4 has one code for MPEG layers 2 and 3, so the same packets may come back as the other.
    if now.codec == was.codec or {now.codec, was.codec} == {"mp2", "mp3"}:
        if not _is_run(now.packets, was.packets):
            yield "was encoded again, or packets are lost in the middle"
    elif re.fullmatch(SOUND_THAT_FITS.get(case.suffix, "-"), was.codec):
        yield f"is {now.codec}, though {case.suffix} holds {was.codec}"
    if now.language != was.language:
        yield f"language {now.language} instead of {was.language}"


def _sound_start(case: Case, was: Sound, now: Sound, row: dict[str, Any]) -> Iterator[str]:
    shown, known = case.output.times_s, case.source.times_s
    if not shown or not known:
        return
    if case.entry.group == "damage":  # the first surviving picture may be another one
        both = set(_readable(case.output)) & set(_readable(case.source))
        if not both:
            return
        shown = [_readable(case.output)[min(both)].time_s or 0.0]
        known = [_readable(case.source)[min(both)].time_s or 0.0]
    lead = was.start_s - known[0]
    if "start" in row:
        lead = row["start"] - case.entry.video.get("start", 0.0)
    shift = (now.start_s - shown[0]) - lead
    if abs(shift) > SOUND_START_TOLERANCE_S:
        yield f"starts {shift * 1000:+.0f} ms from its place beside the picture"


def _is_run(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether `part` is a contiguous run of `whole`."""
    starts = [i for i, digest in enumerate(whole) if part and digest == part[0]]
    return not part or any(whole[i : i + len(part)] == part for i in starts)


def _streams(case: Case) -> Iterator[str]:
    if case.suffix in (".gif", ".png", ".apng"):
        return
    names = {
        "subtitle": "subtitle",
        "attachment": "attachment|font",
        "data": "data|time ?code|telemetry|tmcd|gpmd",
        "chapter": "chapter",
    }
    matroska = case.suffix == ".mkv" and "matroska" in case.source.container
    for kind, words in names.items():
        was, now = case.source.counts[kind], case.output.counts[kind]
        must = kind == "chapter" or (matroska and kind != "data")
        if now < was and (must or not re.search(words, case.said, re.IGNORECASE)):
            yield f"{now} of {was} {kind} streams, " + ("lost" if must else "lost without a word")
    if case.entry.props.get("n_video", 1) > 1 and not re.search(
        r"(video|picture)s? (stream|track)|(other|second|more) (video|picture)", case.said
    ):
        yield "does not say which of the two video streams it took"


def _metadata(case: Case) -> Iterator[str]:
    same = any(
        family in case.source.container and family in case.output.container
        for family in ("mov", "matroska")
    )
    for key, value in case.source.tags.items():
        if same and key not in TAGS_THAT_CHANGE and case.output.tags.get(key) != value:
            yield f"metadata {key}={value!a} became {case.output.tags.get(key)!a}"


def _runs(ids: list[int] | list[int | None]) -> str:
    """Shorten a list of frame numbers: 0..11, ?, 13..29."""
    runs: list[list[int | None]] = []
    for number in ids:
        last = runs[-1][-1] if runs else None
        if runs and number is not None and last is not None and number == last + 1:
            runs[-1].append(number)
        elif runs and number is None and last is None:
            continue
        else:
            runs.append([number])
    parts = ["?" if r[0] is None else f"{r[0]}..{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return ", ".join(parts if len(parts) <= 8 else [*parts[:4], "…", *parts[-3:]]) or "none"


RULES: tuple[Callable[[Case], Iterator[str]], ...] = (
    _frames, _times, _rate, _geometry, _depth, _colour_tags, _interlace, _sound, _streams,
    _metadata,
)  # fmt: skip
CONTENT_RULES: tuple[Callable[[Case], Iterator[str]], ...] = (
    _bar_codes, _order, _colours, _patches, _transparency, _lossless,
)  # fmt: skip
