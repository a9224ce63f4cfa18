"""`vidmatte cameras`: list cameras and virtual cameras, and what to install where there is none."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from vidmatte.errors import printable

if TYPE_CHECKING:
    from vidmatte.sinks.virtualcam import VirtualCameraDescription
    from vidmatte.sources.camera import CameraDescription


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def cameras(as_json: bool) -> None:
    """List cameras with their sizes and rates, virtual cameras, and what to install.

    Example: vidmatte cameras
    """
    from vidmatte.sinks.virtualcam import list_virtual_cameras
    from vidmatte.sources.camera import list_cameras

    document = _document(list_cameras(), list_virtual_cameras())
    lines = [json.dumps(document, indent=1)] if as_json else _lines(document)
    for line in lines:
        click.echo(line)


def _document(
    found: list[CameraDescription], virtual: list[VirtualCameraDescription]
) -> dict[str, Any]:
    """Everything that is told, JSON-ready; rates in pictures per second."""
    return {
        "cameras": [_camera(camera) for camera in found],
        "virtual_cameras": [
            {"device": v.device, "name": printable(v.name), "problem": v.problem} for v in virtual
        ],
        "advice": _advice(found, virtual),
    }


def _camera(camera: CameraDescription) -> dict[str, Any]:
    return {
        "number": camera.number,
        "device": printable(camera.device),
        "name": printable(camera.name),
        "problem": camera.problem,
        "formats": [
            {
                "width": entry.width,
                "height": entry.height,
                "pixel_format": printable(entry.pixel_format),
                "rates": [round(float(rate), 3) for rate in entry.rates],
            }
            for entry in camera.formats
        ],
    }


def _advice(found: list[CameraDescription], virtual: list[VirtualCameraDescription]) -> list[str]:
    """One line per thing that is missing, with the step that repairs it."""
    from vidmatte.sinks.virtualcam import INSTALL_PYVIRTUALCAM, why_no_virtual_camera
    from vidmatte.sources.camera import permission_hint, why_no_camera

    advice = []
    if not found:
        advice += [
            f"no camera: {why_no_camera()}",
            "without one: --camera synthetic, --camera FILE, --camera URL --allow-network",
        ]
    problems = [(d.device, d.problem) for d in found] + [(v.device, v.problem) for v in virtual]
    for device, problem in problems:
        if problem is not None and "permission" in problem:
            advice.append(f"{device}: {permission_hint(device)}")
    if not virtual:
        advice.append(f"no virtual camera: {why_no_virtual_camera()}")
    if find_spec("pyvirtualcam") is None:
        advice.append(f"pyvirtualcam is not installed: {INSTALL_PYVIRTUALCAM}")
    return [printable(line) for line in advice]


def _lines(document: dict[str, Any]) -> list[str]:
    lines = ["cameras"]
    for camera in document["cameras"]:
        lines.append(_heading(f"{camera['number']:>3}  {camera['device']}", camera))
        lines += [f"       {line}" for line in _format_lines(camera["formats"])]
    lines.append("virtual cameras")
    lines += [_heading(f"     {v['device']}", v) for v in document["virtual_cameras"]]
    lines += document["advice"]
    return lines


def _heading(start: str, device: dict[str, Any]) -> str:
    problem = f"  ({device['problem']})" if device["problem"] else ""
    name = "" if device["name"] == device["device"] else f"  {device['name']}"
    return f"{start}{name}{problem}"


def _format_lines(formats: list[dict[str, Any]]) -> list[str]:
    """One line per size: each encoding with its rates."""
    by_size: dict[tuple[int, int], list[str]] = {}
    for entry in formats:
        rates = ", ".join(f"{rate:g}" for rate in entry["rates"])
        text = f"{entry['pixel_format']} {rates} fps" if rates else entry["pixel_format"]
        by_size.setdefault((entry["width"], entry["height"]), []).append(text)
    return [f"{w}x{h}  {'; '.join(texts)}" for (w, h), texts in sorted(by_size.items())]
