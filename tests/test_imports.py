"""Who may import whom: DESIGN.md's direction, read from the source and seen at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, make_clip

PACKAGE = Path(__file__).parents[1] / "vidmatte"
FILES = sorted(PACKAGE.rglob("*.py"))
# Left may use right. A module's layer is its first part; modules beside the folders are named.
LAYERS = {
    "__main__": 0, "cli": 0,
    "__init__": 1, "api": 1, "batch": 1,
    "runner": 2, "jobs": 2, "live": 2, "training": 2, "evaluation": 2,
    "matting": 3, "renders": 3, "device_renders": 3, "backdrop": 3, "outputs": 3,
    "sources": 3, "sinks": 3,
    "pipeline": 3, "v4l2": 3, "threads": 3, "sequences": 3, "inputs": 3, "pairs": 3, "results": 3,
    "compute": 4, "backends": 5, "models": 6,
    "frames": 7, "errors": 7, "ebml": 7, "graphs": 7, "device_frames": 7,
}  # fmt: skip
PLUGINS = ("sources", "sinks", "backends")
FORBIDDEN = {
    "torch": ("sources", "sinks", "compute/cpu", "pipeline", "runner", "matting", "renders",
              "outputs", "models/registry", "models/table", "frames", "errors",
              "cli", "api", "batch", "backdrop"),
    "av": ("models", "backends", "errors", "pipeline"),
    "openvino": ("sources", "sinks", "compute", "models", "pipeline", "runner", "matting", "cli"),
    "cv2": ("sources/_", "sources/file", "sources/companions", "sources/camera", "sinks",
            "models", "backends", "pipeline", "v4l2", "cli"),
}  # fmt: skip
WINDOWS = "sinks/_window"  # the one sink that is a window, which is OpenCV's
HEAVY = ("torch", "av", "cv2", "openvino")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "/".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path, *, run_time_only: bool = False) -> set[str]:
    """Absolute names that a file imports; with `run_time_only` not those for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if run_time_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer_of(name: str) -> int:
    return LAYERS[name.split("/")[0]]


def test_every_module_has_a_layer() -> None:
    assert {module_name(path).split("/")[0] for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    for imported in imports_of(path, run_time_only=True):
        if not imported.startswith("vidmatte."):
            continue
        target = imported.split(".")[1]
        if target in LAYERS:
            assert layer_of(name) <= LAYERS[target], f"{name} imports {imported}"
        if name.split("/")[0] not in ("cli", "training", "evaluation"):
            assert target not in ("training", "evaluation"), f"{name} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_plugins_share_only_through_shared_modules(path: Path) -> None:
    folder, _, own = module_name(path).partition("/")
    if folder not in PLUGINS or not own:
        return
    public = {p.stem for p in (PACKAGE / folder).glob("*.py") if not p.stem.startswith("_")}
    plugins = {p for p in public if p not in SHARED_MODULES[folder]}
    used = {i.split(".")[2] for i in imports_of(path, run_time_only=True)
            if i.startswith(f"vidmatte.{folder}.")}  # fmt: skip
    assert not (used & plugins) - {own}, f"{path.name} imports a sibling"


# Not plug-ins themselves: the second reader of an input, the table, part files.
SHARED_MODULES = {
    "sources": {"companions"},
    "sinks": {"plan", "part"},
    "backends": set[str](),
}


@pytest.mark.parametrize("library", FORBIDDEN)
def test_libraries_stay_where_they_belong(library: str) -> None:
    for path in FILES:
        name = module_name(path)
        if not name.startswith(FORBIDDEN[library]) or (library, name) == ("cv2", WINDOWS):
            continue
        used = {i.split(".")[0] for i in imports_of(path, run_time_only=True)}
        assert library not in used, f"{name} imports {library}"


def modules_after(code: str, cli: Cli, *args: object) -> set[str]:
    """The modules that a fresh process has loaded after `code`."""
    report = "\nimport sys; sys.stderr.write('\\nMODULES ' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report, *map(str, args)],
        env=cli.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str], run_cli: Cli) -> None:
    code = (
        "import sys\nfrom vidmatte.cli import program\n"
        "try: program(sys.argv[1:], standalone_mode=True)\nexcept SystemExit: pass"
    )
    loaded = modules_after(code, run_cli, *arguments)
    assert not loaded & set(HEAVY)


def test_importing_the_package_is_light(run_cli: Cli) -> None:
    loaded = modules_after("import vidmatte; vidmatte.__all__", run_cli)
    assert not loaded & {"torch", "av", "cv2", "openvino"}


@pytest.mark.parametrize("backend", ["openvino", "null"])
def test_a_whole_run_on_a_cpu_never_imports_torch(
    backend: str, tmp_path: Path, run_cli: Cli
) -> None:
    source = make_clip(tmp_path / "s.mp4", 3, audio="aac")
    code = (
        "import sys\nfrom vidmatte.pipeline import Stop\n"
        "from vidmatte.runner import FileRun\nfrom vidmatte.matting import MattingChoice\n"
        "FileRun(sys.argv[1], {sys.argv[2]: 'opaque', sys.argv[3]: 'transparent'},"
        f" matting=MattingChoice(backend={backend!r})).run(Stop())"
    )
    loaded = modules_after(code, run_cli, source, tmp_path / "o.mp4", tmp_path / "f.mov")
    assert "torch" not in loaded
    assert "torchvision" not in loaded
    assert not {m for m in loaded if m.startswith(("vidmatte.training", "vidmatte.evaluation"))}
    assert (tmp_path / "f.mov").exists()
    if backend == "null":
        assert "openvino" not in loaded
