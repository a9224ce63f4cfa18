"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import click

fit_option = click.option(
    "--fit",
    type=click.Choice(["cover", "contain", "stretch"]),
    default="cover",
    show_default=True,
    help="How a background picture or video fills the frame.",
)
_NETWORK = (
    click.option("--model", metavar="NAME", help="Model; see `vidmatte models`. Default: live."),
    click.option(
        "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Your own weights file."
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, cuda:N, or several GPUs: cuda:0,1 or cuda:all.",
    ),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="auto, openvino, tensorrt, torch, null.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "f32", "f16", "bf16", "int8"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the network.",
    ),
)


def network_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add which network makes the mattes, and where: model, weights, device, backend, precision."""
    return reduce(lambda decorated, option: option(decorated), reversed(_NETWORK), command)
