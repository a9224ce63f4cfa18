"""What a benchmark's card says of the machine and of the code that is measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vidmatte.backends import usable_cores


def machine_card(*packages: str) -> dict[str, Any]:
    """Return processor, cores, load, and the versions of Python, the code and `packages`."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("vidmatte", "av", "openvino", *packages)},
        "commit": commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    said = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout
    return said.strip() or "unknown"
