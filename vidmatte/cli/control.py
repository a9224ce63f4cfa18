"""`vidmatte control`: speak to the live session that runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from vidmatte.errors import printable

if TYPE_CHECKING:
    from vidmatte.live.control import Answer

NEXT = "next"


@click.group()
@click.option("--name", default=None, metavar="NAME", help="The session's --control NAME.")
@click.pass_context
def control(context: click.Context, *, name: str | None) -> None:
    """Change the running `vidmatte webcam` from elsewhere: another terminal, a hot key.

    Example: vidmatte control background beach.jpg
    """
    context.obj = name


@control.command()
@click.argument("background")
@click.pass_context
def background(context: click.Context, *, background: str) -> None:
    """Show BACKGROUND: a colour, picture, video, blur[:STRENGTH], or next.

    Example: vidmatte control background next
    """
    _say(_send(context, "background", _as_named_here(background)))


@control.command()
@click.pass_context
def freeze(context: click.Context) -> None:
    """Hold the last picture until `resume`.

    Example: vidmatte control freeze
    """
    _say(_send(context, "freeze"))


@control.command()
@click.pass_context
def resume(context: click.Context) -> None:
    """Go on after `freeze`, or hide the room after it was shown by a key.

    Example: vidmatte control resume
    """
    _say(_send(context, "resume"))


@control.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.pass_context
def mirror(context: click.Context, *, state: str) -> None:
    """Flip the camera's picture left to right, or not.

    Example: vidmatte control mirror on
    """
    _say(_send(context, "mirror", state))


@control.command()
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as JSON.")
@click.pass_context
def status(context: click.Context, *, as_json: bool) -> None:
    """Say how the session is doing, in one line.

    Example: vidmatte control status
    """
    known: dict[str, Any] = _send(context, "status")["status"]
    click.echo(json.dumps(known) if as_json else _in_a_line(known))


@control.command()
@click.pass_context
def quit(context: click.Context) -> None:
    """End the session.

    Example: vidmatte control quit
    """
    _say(_send(context, "quit"))


def _send(context: click.Context, command: str, value: str | None = None) -> Answer:
    from vidmatte.live.control import DEFAULT_NAME, send_command, socket_path

    return send_command(socket_path(context.obj or DEFAULT_NAME), command, value)


def _as_named_here(text: str) -> str:
    """Make a file's name absolute: the session may have begun in another folder."""
    from vidmatte.backdrop import Backdrop

    if text in (NEXT, "none"):  # the session refuses `none` and says why
        return text
    return os.path.abspath(text) if Backdrop(text).files else text


def _say(answer: Answer) -> None:
    click.echo(printable(answer.get("text", "")))


def _in_a_line(known: dict[str, Any]) -> str:
    """Write a session's status, which came over the socket, as `webcam` does itself."""
    from vidmatte.cli.status import status_line
    from vidmatte.live.contracts import Counts, LiveStatus

    status = LiveStatus(**{**known, "counts": Counts(**known["counts"])})
    return status_line(status, None)
