"""Every message that a user can read, as it is read; none without a file or option, and a way out.

`VIDMATTE_UPDATE_MESSAGES=1 python -m pytest tests/test_messages.py` writes messages.txt anew; its
diff is what reviewers read.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_here import CliHere
from conftest import REPOSITORY
from message_scenarios import SCENARIOS, make_base

from vidmatte import errors
from vidmatte.errors import printable

pytestmark = pytest.mark.fault

PACKAGE = REPOSITORY / "vidmatte"
SNAPSHOT = Path(__file__).with_name("messages.txt")
UPDATE = bool(os.environ.get("VIDMATTE_UPDATE_MESSAGES"))
ERRORS = {
    name for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.VidmatteError)
    and kind is not errors.CancelledError  # never shown
}  # fmt: skip
# What cameras and screens make live mode say, its own tests provoke; message_live has the rest.
LIVE = re.compile(
    r"live/|cli/(webcam|control|cameras|status|keys|doctor)|camera|virtualcam|preview|v4l2"
    r"|sinks/(screen|window)|sources/_(devices|live)"
)
MEASURED = (
    (r"in \d+\.\d s, \d+\.\d fps", "in N s, N fps"),
    (r"busiest: \w+ \(\d+%", "busiest: STAGE (N%"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\.\d+\.part\b", ".PID.part"),
    (r"(first at|after) \d+\.\d\d s", r"\1 N s"),
    (r"\d\.\d{5} (as fp16|in 8 bits)", r"N \1"),
)

SAID: dict[str, str] = {}
CAME_FROM: set[tuple[str, int]] = set()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember which lines of the package build errors."""
    original = errors.VidmatteError.__init__

    def init(self: errors.VidmatteError, message: str, *, hint: str | None = None) -> None:
        caller = sys._getframe(1)
        CAME_FROM.add((caller.f_code.co_filename, caller.f_lineno))
        original(self, message, hint=hint)

    monkeypatch.setattr(errors.VidmatteError, "__init__", init)


def blocks_of(text: str) -> dict[str, str]:
    """Split the snapshot into scenarios."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture(scope="module")
def snapshot() -> dict[str, str]:
    return blocks_of(SNAPSHOT.read_text("utf-8")) if SNAPSHOT.exists() else {}


def normal(text: str, folder: Path) -> str:
    """Put placeholders where every run and machine differs."""
    text = text.replace(str(folder), "FOLDER").replace(str(PACKAGE), "PACKAGE")
    for pattern, placeholder in MEASURED:
        text = re.sub(pattern, placeholder, text)
    return text.strip("\n")


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_the_user_reads(
    name: str,
    base: Path,
    snapshot: dict[str, str],
    recorded: None,
    cli_here: CliHere,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = SCENARIOS[name]
    folder = tmp_path / "f"
    shutil.copytree(base, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VIDMATTE_MODEL_DIR", str(folder / "models"))
    arguments = scenario.command.split()
    if arguments[0] == "run" and "--backend" not in arguments:
        arguments += ["--backend", "null"]
    with monkeypatch.context() as patch:
        tidy = scenario.prepare(folder, patch) if scenario.prepare is not None else None
        done = cli_here(*arguments)
    if callable(tidy):
        tidy()
    said = normal(done.out + done.err, folder)
    SAID[name] = f"$ vidmatte {printable(scenario.command)[:90]}\n{said}\nexit code {done.code}"
    if not UPDATE:
        assert SAID[name] == snapshot.get(name), name
    check_manners(done.err, done.code)
    assert ("internal error" in done.err) == (name == "our bug")


def check_manners(text: str, code: int) -> None:
    lines = text.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert (code != 0) == bool(errors)
    assert "Traceback" not in text
    for number, line in enumerate(lines):
        if line.startswith("hint: "):
            assert lines[number - 1].startswith("error: ")


def test_the_snapshot_holds_these_scenarios_and_no_other(snapshot: dict[str, str]) -> None:
    if UPDATE and len(SAID) == len(SCENARIOS):
        text = "".join(f"## {name}\n{SAID[name]}\n\n" for name in SCENARIOS)
        SNAPSHOT.write_text(text, "utf-8")
        return
    assert list(snapshot) == list(SCENARIOS)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the code that makes a message."""

    file: str
    first: int
    last: int
    text: str
    hint: str | None

    @property
    def key(self) -> str:
        """What the lists below call it."""
        return f"{self.file}: {self.text}"


def template(node: ast.expr) -> str:
    """The words of a message, with {} for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "{}"


def files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not LIVE.search(name):
            yield name, ast.parse(path.read_text("utf-8"))


def error_sites() -> list[Site]:
    """Every place that builds an error."""
    found = []
    for name, tree in files():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id not in ERRORS or not node.args:
                    continue
                hints = [ast.unparse(k.value) for k in node.keywords if k.arg == "hint"]
                text = template(node.args[0])
                last = node.end_lineno or node.lineno
                found.append(Site(name, node.lineno, last, text, hints[0] if hints else None))
    return found


def note_sites() -> list[Site]:
    """Every place that adds a note or a warning to what a run tells."""
    found = []
    for name, tree in files():
        for node in ast.walk(tree):
            said: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "append" and _is_list(node.func.value):
                    said = list(node.args)
            elif isinstance(node, ast.AugAssign) and _is_list(node.target):
                said = list(getattr(node.value, "elts", []))
            for text in map(template, said):
                if text != "{}":
                    found.append(Site(name, node.lineno, node.lineno, text, None))
    return found


def _is_list(node: ast.expr) -> bool:
    return re.search(r"(notes|warnings|losses|causes)$", ast.unparse(node)) is not None


# Errors whose message itself says what to do, or that leave nothing to do but read it.
WITHOUT_HINT = {
    "backends/__init__.py: {} takes sizes in multiples of {}, not {}x{}": "callers of the library",
    "sources/_shared.py: {}: cannot be opened: {}": "the command adds the cure for what ran out",
    "sources/file.py: {}: its decoder cannot start its threads": "the command adds the cure",
    "sources/file.py: {}: {}": "the time is the answer: ends before 60 s",
}
# What no scenario provokes: who does, or what it would take.
NOT_PROVOKED = {
    "backends/__init__.py: there is no device {}": "test_backends; commands refuse it before",
    "backends/__init__.py: {} is out of memory": "test_cuda_engine",
    "backends/torch.py: {} failed: {}": "a GPU that fails",
    "backdrop.py: unknown fit '{}'": "vidmatte.run only; the command refuses it by itself",
    "backends/__init__.py: {} takes sizes in multiples of {}, not {}x{}": "test_backends",
    "backends/_spread.py: backend {} does not run on several devices at once": "test_spread",
    "backends/_spread.py: {}: {}": "test_spread",
    "backends/_tensorrt_compiler.py: the TensorRT engine {}: {}": "TensorRT that fails",
    "backends/_tensorrt_engine.py: the TensorRT engine of {} answers wrongly: {}": "test_tensorrt",
    "backends/_tensorrt_upgrade.py: TensorRT is not used: {}": "test_tensorrt_upgrade",
    "backends/openvino.py: OpenVINO cannot run {}: {}": "test_faults_environment",
    "compute/cpu/_shared.py: OpenCV cannot be loaded: {}": "an OpenCV without libGL",
    "compute/cpu/looping.py: {}: the background video holds no picture": "a file that changes",
    "models/registry.py: there are no int8 ranges for {}": "test_models",
    "models/registry.py: {} cannot be read: permission denied": "test_faults_models",
    "models/weights.py: {}: the normalisation of {} has a wrong shape": "test_fuzz_regressions",
    "outputs.py: {}: holds an input": "test_faults_output",
    "pairs.py: {}: {}": "test_pairs",
    "runner.py: the pixel format changes in the middle: {} pictures are converted to {}": "corpus",
    "runner.py: {} packets of sound could not wait; dropped": "64 MB of sound ahead of a picture",
    "sinks/_shared.py: {}: cannot be encoded: {}": "an encoder that fails in the middle",
    "sinks/_streams.py: {}: its rate or channels change; {} packets are left out": (
        "test_faults_input"
    ),
    "sinks/_streams.py: {}: {} damaged packets are left out": "corpus",
    "sinks/file.py: pixels of {} become square: {} in {} cannot say their shape": "test_aspect",
    "sinks/part.py: {}: its part {} was moved or removed during the run": "test_faults_output",
    "sinks/plan.py: HDR in 8 bits will show banding": "test_plan",
    "sinks/plan.py: HDR mastering and light levels are left out: {} does not carry them": "corpus",
    "sources/_boxes.py: {}: its index claims {} samples in {} bytes; it is damaged or made to do "
    "harm": "test_faults_input",
    "sources/_shared.py: {}: cannot be opened: {}": "test_faults_environment",
    "sources/_damage.py: a stream that begins late in the file is left out": (
        "test_fuzz_regressions"
    ),
    "sources/_damage.py: {} pictures had no time stamp; spaced at the nominal rate": "corpus",
    "sources/_damage.py: {} left out, dated back before others{}": ("test_fuzz_regressions"),
    "sources/_damage.py: {} read errors{}": "corpus",
    "sources/_damage.py: {} time stamps were not after the one before; moved on": "corpus",
    "sources/file.py: {}: its decoder cannot start its threads": "test_faults_environment",
    "sources/file.py: {}: its index is at the end, and a pipe cannot go back": "test_run_faults",
    "sources/file.py: {}: no decoder knows its video format": "corpus",
    "sources/images.py: {}: cannot be decoded": "a decoder that gives no picture and no error",
    "sources/synthetic.py: no such scenario: {}": "callers of the library",
    "training/export.py: {}: answers differ from the trained network's by {}": "test_training",
    "training/trainer.py: step {}: the loss is {}": "test_training",
}


def test_every_error_says_what_to_do() -> None:
    bare = {site.key for site in error_sites() if site.hint in (None, "None")}
    assert sorted(bare) == sorted(WITHOUT_HINT)


def test_every_error_names_its_subject() -> None:
    """A file, an option, a model, a device: something is filled in, or an option is spelled out."""
    for site in error_sites():
        assert "{}" in site.text or re.search(
            r"--\w|standard input|terminal|CPU|\.onnx|server", site.text
        ), site.key


def test_every_message_is_provoked() -> None:
    if len(SAID) < len(SCENARIOS):
        pytest.skip("needs every scenario in one session")
    lines = {(str(Path(file).resolve()), line) for file, line in CAME_FROM}
    missing = {
        site.key for site in error_sites()
        if not any((str(PACKAGE / site.file), line) in lines
                   for line in range(site.first, site.last + 1))
    }  # fmt: skip
    said = "\n".join(SAID.values())
    missing |= {
        site.key for site in note_sites()
        if not re.search(".*?".join(map(re.escape, site.text.split("{}"))), said)
    }  # fmt: skip
    if UPDATE:
        print("\n".join(["MISSING", *sorted(missing)]))
    assert sorted(missing) == sorted(NOT_PROVOKED)


def test_the_promises_name_tests_that_are_there() -> None:
    text = (REPOSITORY / "docs" / "promises.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \| .*\|(.*)\|$", text, re.MULTILINE)
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert [len(tests) > 0 for tests in named[-10:]] == [True] * 10
    for name in set(re.findall(r"`(test_\w+)`", text)):
        assert (Path(__file__).parent / f"{name}.py").is_file(), name
