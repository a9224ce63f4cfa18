"""Ways to make TensorRT and the engines say something."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt as fake
from message_tools import Patch, Prepare, Scenario, both, write

from vidmatte.backends import _tensorrt_compiler as compiler_module
from vidmatte.backends import tensorrt
from vidmatte.backends._tensorrt_store import VARIABLE


def engines_in(name: str) -> Prepare:
    return lambda folder, patch: patch.setenv(VARIABLE, str(folder / name))


def compiler(mode: str = "right", where: str = "engines") -> Prepare:
    """TensorRT is here, in the shape of a fake."""

    def prepare(folder: Path, patch: Patch) -> None:
        engines_in(where)(folder, patch)
        fake.use(patch, fake.FakeCompiler(mode))

    return prepare


def open_to_all(folder: Path, patch: Patch) -> None:
    engines_in("engines")(folder, patch)
    (folder / "engines").mkdir()
    (folder / "engines").chmod(0o777)


def no_gpu(folder: Path, patch: Patch) -> None:
    library = SimpleNamespace(__version__="11.0.0")
    for module in (compiler_module, tensorrt):
        patch.setattr(module, "import_library", lambda name: library)


def not_importable(folder: Path, patch: Patch) -> None:
    patch.setattr("vidmatte.backends._tensorrt_libraries.missing_libraries", list)


BUILD = "engines build --model live --size 64x64 --device cpu"
ENGINES = {
    "engines without TensorRT": Scenario("engines build"),
    "engines cannot be imported": Scenario("engines verify", not_importable),
    "engines without a GPU": Scenario("engines verify", no_gpu),
    "engines: no size": Scenario("engines build --size 320x180", compiler()),
    "engines: two sizes": Scenario(f"{BUILD} --clip s.mp4", compiler()),
    "engines: a clip of nobody": Scenario(
        "engines build --model live --device cpu --clip s.mp4", compiler()
    ),
    "engines rejected": Scenario(BUILD, compiler("nan")),
    "engines in the current folder": Scenario(
        "engines list", lambda folder, patch: patch.setenv(VARIABLE, "engines")
    ),
    "engines open to all": Scenario("engines list", open_to_all),
    "engines in a file": Scenario(BUILD, compiler(where="s.mp4/engines")),
    "engines: none": Scenario("engines list", engines_in("engines")),
    "engines: clean": Scenario("engines clean", both(
        engines_in("engines"), lambda folder, patch: (folder / "engines").mkdir(),
        write("engines/live-1.engine", "not an engine"))),
    "engines damaged": Scenario("engines list", both(
        engines_in("engines"), lambda folder, patch: (folder / "engines").mkdir(),
        write("engines/live-1.engine", "not an engine"))),
}  # fmt: skip
