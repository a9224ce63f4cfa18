"""`vidmatte models`: list, import and download weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from vidmatte.errors import ModelError, printable


@click.group()
def models() -> None:
    """List, import and download the weights of the networks.

    Example: vidmatte models list
    """


def _describe(name: str) -> dict[str, Any]:
    """Return one model's facts, JSON-ready; sizes in bytes, multiply-adds at 320×320."""
    from vidmatte.models.registry import find, install_hint, row_named
    from vidmatte.models.table import multiply_adds, parameter_count

    row = row_named(name)
    model = find(name)
    return {
        "name": name,
        "parameters": parameter_count(row.network),
        "multiply_adds": multiply_adds(row.network, 320, 320),
        "licence": row.licence,
        "source": row.source,
        "where": None if model is None else str(model.path),
        "origin": None if model is None else model.origin,
        "bytes": None if model is None else model.path.stat().st_size,
        "sha256": None if model is None else model.sha256,
        "get": install_hint(name) if model is None else None,
        "download": None if row.download is None else row.download._asdict(),
    }


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_(as_json: bool) -> None:
    """List the models: size, licence, where they are, SHA-256, multiply-adds.

    Example: vidmatte models list --json
    """
    from vidmatte.models.table import models as table

    facts = [_describe(name) for name in table()]
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for fact in facts:
        click.echo(_lines(fact))


def _lines(fact: dict[str, Any]) -> str:
    """One model in four lines: a SHA-256 and a path do not fit a table on 80 columns."""
    size = "" if fact["bytes"] is None else f", {fact['bytes'] / 1e6:.1f} MB"
    if fact["origin"] is None:
        where = f"not here; {fact['get']}"
    else:
        where = f"{fact['origin']}: {fact['where']}"
    lines = [
        fact["name"],
        f"  {fact['parameters'] / 1e6:.2f} M parameters{size}, "
        f"{fact['multiply_adds'] / 1e9:.2f} G multiply-adds at 320x320",
        f"  licence {fact['licence']}; {fact['source']}",
        f"  {where}",
    ]
    if fact["sha256"] is not None:
        lines.append(f"  SHA-256 {fact['sha256']}")
    return "\n".join(printable(line) for line in lines)


def _installed(model: Any) -> None:
    click.echo(printable(f"{model.name}: {model.path}"))
    click.echo(f"SHA-256 {model.sha256}")


@models.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Model it belongs to, where several share a network.")
def import_(file: Path, name: str | None) -> None:
    """Install weights from a .pth, .safetensors or .onnx file.

    Example: vidmatte models import u2net_human_seg.pth --name u2net_human_seg
    """
    from vidmatte.models.install import install

    _installed(install(file, name))


@models.command()
@click.argument("name")
def download(name: str) -> None:
    """Download the weights of a model, check them and install them.

    Example: vidmatte models download u2netp
    """
    from vidmatte.models.download import download as fetch
    from vidmatte.models.install import install
    from vidmatte.models.registry import find, install_hint, model_folder, row_named

    row = row_named(name)
    if find(name) is not None:
        raise ModelError(f"{name} is here already", hint="see: vidmatte models list")
    if row.download is None:
        raise ModelError(f"{name} has no known download address", hint=install_hint(name))
    file = model_folder() / f"{name}.pth"
    try:
        fetch(row.download, file, _Progress(name))
    except SystemExit:  # Ctrl-C or SIGTERM
        part = file.with_name(f"{file.name}.part")
        if part.exists():
            told = printable(f"stopped: what came is in {part}; the same command continues it")
            click.echo(told, err=True)
        raise
    model = install(file, name, sha256=row.download.sha256)
    file.unlink()
    _installed(model)


class _Progress:
    """Tells on stderr how much has arrived, where stderr is a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        """Show percent (or megabytes, if the size is unknown) when it has changed."""
        if not sys.stderr.isatty():
            return
        now = done * 100 // total if total else done // 1_000_000
        if now == self.shown:
            return
        self.shown = now
        end = "\n" if done == total else ""
        click.echo(f"\r{self.name}: {now} {'%' if total else 'MB'}{end}", nl=False, err=True)
