"""Read what a container and its bitstreams say of themselves, with ffprobe."""

from __future__ import annotations

import json
import os
import re
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

FFPROBE = os.environ.get("FFPROBE", "ffprobe")
PROBE_TIMEOUT_S = 30
Turn = tuple[int, int, int, int]


def probe(path: Path) -> dict[str, Any]:
    """Return ffprobe's JSON: format, streams, chapters and the first frames."""
    sections = ["-show_format", "-show_streams", "-show_chapters", "-show_frames"]
    command = [FFPROBE, "-v", "error", *sections, "-read_intervals", "%+#80", "-of", "json"]
    done = subprocess.run(
        [*command, "-i", f"file:{path}"],
        capture_output=True,
        timeout=PROBE_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout or b"{}")
    return result


def stream_of(report: dict[str, Any], index: int) -> dict[str, Any]:
    """Stream `index` of the report; ffprobe of another version may know fewer streams."""
    return next((s for s in report.get("streams", []) if s.get("index") == index), {})


def ratio(text: str, default: Fraction) -> Fraction:
    """Read 4:3 or 30/1; nonsense such as 0/0 and N/A gives `default`."""
    top, _, bottom = text.replace(":", "/").partition("/")
    if not top.isdigit() or not bottom.isdigit() or not int(bottom) or not int(top):
        return default
    return Fraction(int(top), int(bottom))


def sample_aspect(stream: dict[str, Any], frame: dict[str, Any]) -> Fraction:
    """Of the stream, or of its first frame: FFV1 has it in every frame."""
    first = ratio(frame.get("sample_aspect_ratio", ""), Fraction(1))
    return ratio(stream.get("sample_aspect_ratio", ""), first)


def display_turn(holder: dict[str, Any]) -> Turn | None:
    """Return (a, b, c, d) of the display matrix, as signs, of a stream or frame that has one."""
    for side in holder.get("side_data_list", []):
        numbers = re.findall(r":((?:\s+-?\d+){3})", side.get("displaymatrix", ""))
        if len(numbers) == 3:
            (a, b, _), (c, d, _) = ([int(n) for n in row.split()] for row in numbers[:2])
            return sign(a), sign(b), sign(c), sign(d)
    return None


def sign(number: int) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def colour_tags(stream: dict[str, Any], frame: dict[str, Any]) -> dict[str, str]:
    """Return matrix, range, primaries and transfer by FFmpeg's names; "unknown" is untagged."""
    names = {
        "matrix": "color_space",
        "range": "color_range",
        "primaries": "color_primaries",
        "transfer": "color_transfer",
    }
    return {k: str(frame.get(v) or stream.get(v) or "unknown") for k, v in names.items()}


def hdr_values(frame: dict[str, Any], stream: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Mastering display and content light values, as reduced fractions in text."""
    found = {}
    for side in [*stream.get("side_data_list", []), *frame.get("side_data_list", [])]:
        name = side.get("side_data_type", "")
        if name in ("Mastering display metadata", "Content light level metadata"):
            values = {k: v for k, v in side.items() if k != "side_data_type"}
            found[name] = tuple(f"{k}={Fraction(v)}" for k, v in sorted(values.items()))
    return found


def field_order(frame: dict[str, Any]) -> str:
    """Return progressive, tff or bff."""
    if not frame.get("interlaced_frame"):
        return "progressive"
    return "tff" if frame.get("top_field_first") else "bff"


def stream_counts(report: dict[str, Any]) -> dict[str, int]:
    """Count streams by kind, and chapters."""
    streams = report.get("streams", [])
    kinds = [s.get("codec_type") for s in streams]
    tags = [holder.get("tags", {}) for holder in (report.get("format", {}), *streams)]
    if "data" not in kinds and any(key.lower() == "timecode" for tag in tags for key in tag):
        kinds.append("data")  # Matroska has a tag where MOV has a track
    counts = {k: kinds.count(k) for k in ("video", "audio", "subtitle", "data", "attachment")}
    return {**counts, "chapter": len(report.get("chapters", []))}
