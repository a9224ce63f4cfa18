"""Assemble a run over one file: source, matting, renders and sinks, from check to final name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any

from vidmatte.backdrop import Backdrop
from vidmatte.backends import notes_of, usable_cores
from vidmatte.backends._spread import parse_devices
from vidmatte.compute.cpu._shared import load_cv2
from vidmatte.compute.cpu.conform import Conformer
from vidmatte.errors import BackendError, CancelledError, InputError, OutputError
from vidmatte.frames import Frame, Layout
from vidmatte.inputs import source_of
from vidmatte.jobs import Cut, EncodingChoice, Progress, RunResult
from vidmatte.matting import (
    GPU_BATCH,
    MattingChoice,
    Network,
    NetworkKeeper,
    build_matting,
    first_device,
    open_network,
)
from vidmatte.outputs import Destination, destination_of, plan_for, refuse_same_file
from vidmatte.pipeline import Outcome, Pipeline, Stop, supervise
from vidmatte.renders import picture_maker, working_layout
from vidmatte.sinks._hardware import has_nvenc
from vidmatte.sinks.file import Muxing
from vidmatte.sinks.plan import Content, OutputPlan
from vidmatte.sources.companions import Companions, SideChannel
from vidmatte.sources.file import FileSource
from vidmatte.threads import thread_budget

if TYPE_CHECKING:
    import av

    from vidmatte.compute.cuda.engine import DeviceInference, DeviceMatting
    from vidmatte.matting import Inference, Matting
    from vidmatte.sinks import Sink

STDIN = "-"
BELIEVABLE_S = 7 * 24 * 3600  # headers that claim more are damaged


@dataclass(slots=True)
class _Output:
    """One output on its way: where it goes, what it is made of, and its open sink."""

    name: str
    destination: Destination
    plan: OutputPlan
    sink: Sink


class FileRun:
    """One input, one pass, one or more outputs.

    `outputs` maps names to what they hold. `rate` is the frames per second where the source is a
    pattern of numbered pictures. Building it checks names and options and loads
    nothing heavy; `run` does the work. Both raise VidmatteError subclasses.
    """

    def __init__(
        self,
        source: str,
        outputs: dict[str, Content],
        *,
        background: str = "green",
        fit: str = "cover",
        matting: MattingChoice | None = None,
        encoding: EncodingChoice | None = None,
        cut: Cut | None = None,
        rate: Fraction | None = None,
        max_pixels: int | None = None,
        overwrite: bool = False,
        strict: bool = False,
        networks: NetworkKeeper | None = None,
    ) -> None:
        own = partial(open_network, gpu_batch=GPU_BATCH)
        self._open_network = own if networks is None else networks.open
        self._source_name = source
        self._contents = outputs
        self._matting_choice = matting or MattingChoice()
        parse_devices(self._matting_choice.device)  # a wrong one is told at once
        self._encoding = encoding or EncodingChoice()
        self._cut = cut or Cut()
        self._strict = strict
        self._backdrop = Backdrop(background, fit)
        self._budget = thread_budget(usable_cores())
        self._side = SideChannel() if source == STDIN else None
        self._companions: Companions | SideChannel | None = self._side
        self._source = source_of(
            source,
            rate=rate,
            threads=self._budget.decoder,
            start_s=self._cut.start_s,
            end_s=self._cut.end_s,
            max_pixels=max_pixels,
            on_packet=self._side.put if self._side else None,
        )
        refuse_same_file(list(outputs), [*self._source.files, *self._backdrop.files])
        self._destinations = {n: destination_of(n, overwrite=overwrite) for n in outputs}
        self._outputs: list[_Output] = []
        self._matting: Matting | DeviceMatting | None = None
        self._network: Network | None = None
        self._gpu: int | None = None
        self._waiting_for = ""
        self._layout: Layout
        self._last_s = 0.0
        self._is_complete = False
        self._deciding = Lock()
        self._is_open = self._is_given_up = False
        self.result = RunResult()

    def run(self, stop: Stop, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
        """Do it and return what was done; raise what went wrong after tidying up.

        When asked to stop, parts that play are kept and named in the result.
        """
        resources = contextlib.ExitStack()
        self._stop = stop
        try:
            supervise(lambda: self._open_or_tidy(resources), stop)
        except CancelledError:
            self._give_up(resources)
            self.result.stopped_by = stop.reason
            return self.result
        except BaseException:
            self._give_up(resources)
            raise
        pipeline = self._pipeline()
        try:
            outcome = pipeline.run(stop, self._ticker(pipeline, on_progress))
        except BaseException as error:  # of `on_progress`, or KeyboardInterrupt
            self._abandon(error)
            raise
        finally:
            self.result.hanging = pipeline.hanging
            if not pipeline.hanging:  # a hanging worker still uses them
                resources.close()
        self._settle(outcome, stop)
        return self.result

    def _open_or_tidy(self, resources: contextlib.ExitStack) -> None:
        """Open everything, or leave nothing: after an error, or if the run was given up."""
        try:
            self._open(resources)
            with self._deciding:
                if self._is_given_up:
                    raise CancelledError("stopped")
                self._is_open = True
        except BaseException:
            self._abandon()
            resources.close()
            raise

    def _give_up(self, resources: contextlib.ExitStack) -> None:
        """Leave nothing of what is open, or of what a thread that hangs may still open."""
        with self._deciding:
            self._is_given_up = True
        for destination in self._destinations.values():
            destination.withdraw()
        if self._is_open:
            self._abandon()
            resources.close()

    def _open(self, resources: contextlib.ExitStack) -> None:
        """Open source, background and sinks; on a worker thread, since opening may block."""
        self._choose_gpu()
        resources.enter_context(self._source)
        self._backdrop.check()
        self._info = self._source.info
        if self._cut.frames == 1:
            self._info = replace(self._info, is_still=True)
        plans: dict[str, OutputPlan] = {}
        for name, content in self._contents.items():
            is_main = not plans and content != "matte"
            chosen = self._encoding if is_main else EncodingChoice()
            plans[name] = plan_for(
                name,
                self._info,
                content,
                codec=chosen.codec,
                crf=chosen.crf,
                preset=chosen.preset,
                nvenc=None if self._gpu is None else partial(has_nvenc, gpu=self._gpu),
            )
        self._open_companions(resources, plans)
        self._name_lost_sound(*next(iter(plans.items())))
        for name, plan in plans.items():
            self._outputs.append(self._open_output(name, plan, main=not self._outputs))

    def _choose_gpu(self) -> None:
        """Where the network runs on a GPU, let that decode and encode too, if it can.

        It hides damage within pictures, so that it does not decode where --strict asks for none.
        """
        try:
            device = first_device(self._matting_choice)
        except BackendError:
            return  # told when the network is opened, after what is wrong with the files
        if device == "cpu":
            return
        self._gpu = int(device.partition(":")[2] or 0)
        if isinstance(self._source, FileSource) and not self._strict:
            self._source.gpu = self._gpu

    def _open_companions(
        self, resources: contextlib.ExitStack, plans: dict[str, OutputPlan]
    ) -> None:
        if self._cut.frames == 1:
            self._companions = None  # one picture has no sound
        elif self._side is not None:
            assert isinstance(self._source, FileSource)  # it is standard input
            self._side.describe(self._source.container)
            self._side.stop_s = self._cut.length_s
        elif any(p.kind == "video" for p in plans.values()) and self._source.has_companions:
            self._companions = resources.enter_context(
                Companions(self._source_name, start_s=self._cut.start_s, end_s=self._cut.end_s)
            )

    def _name_lost_sound(self, name: str, plan: OutputPlan) -> None:
        """Say that the main output holds no sound, where there is some and it is wanted."""
        if plan.kind == "video" or self._cut.frames == 1 or not self._encoding.audio:
            return
        if isinstance(self._source, FileSource) and self._source.container.streams.audio:
            self.result.notes.append(f"the sound is left out: {name} cannot hold it")

    def _open_output(self, name: str, plan: OutputPlan, *, main: bool) -> _Output:
        destination = self._destinations[name]
        sink = destination.open(
            plan,
            self._info,
            Muxing(
                self._companions if main else None,
                audio=self._encoding.audio,
                video_metadata=self._source.video_metadata,
                threads=self._budget.encoder,
                gpu=self._gpu,
            ),
        )
        if destination.kept_aside is not None:
            self.result.notes.append(
                f"{name}: an earlier unfinished part is kept as {destination.kept_aside.name}"
            )
        return _Output(name, destination, plan, sink)

    def _pipeline(self) -> Pipeline:
        return Pipeline(
            self._frames(),
            {"infer": self._infer, "render": self._render},
            self._write,
            self._close_sinks,
            size_of=_bytes_of,
            pace="infer",
        )

    def _ticker(
        self, pipeline: Pipeline, on_progress: Callable[[Progress], None] | None
    ) -> Callable[[], None]:
        if on_progress is None:
            return lambda: None
        return lambda: on_progress(self._progress(pipeline))

    def _progress(self, pipeline: Pipeline) -> Progress:
        info, cut = self._info, self._cut
        count = info.frame_count
        if count is None and info.duration_s and info.duration_s < BELIEVABLE_S:
            count = round(info.duration_s * float(info.frame_rate))
        if cut.frames is not None:
            count = cut.frames
        elif count is not None and (cut.start_s or cut.end_s):
            rate = float(info.frame_rate)
            end = min(count / rate, cut.end_s if cut.end_s is not None else count / rate)
            count = max(0, round((end - (cut.start_s or 0.0)) * rate))
        return Progress(
            pipeline.done, pipeline.elapsed_s, count, info.frame_rate, self._waiting_for
        )

    def _frames(self) -> Iterator[Frame]:
        for frame in self._source:
            yield frame
            if self._cut.frames is not None and frame.index + 1 >= self._cut.frames:
                return

    def _infer(self, frames: Iterator[Frame]) -> Iterator[Any]:
        """Load the model and answer for every frame, on the inferring thread."""
        needs_alpha = any(o.plan.content == "transparent" for o in self._outputs)
        self._layout = working_layout(self._info, needs_alpha=needs_alpha)
        with contextlib.closing(self._open_matting(self._layout)) as self._matting:
            yield from self._matting.infer(frames)

    def _render(self, inferences: Iterator[Any]) -> Iterator[list[av.VideoFrame]]:
        """Turn answers into one picture per output, on the rendering thread."""
        first = next(inferences, None)  # the model is loaded by then
        if first is None:
            return
        assert self._matting is not None
        plans = [output.plan for output in self._outputs]
        with contextlib.closing(self._backdrop):
            pictures = picture_maker(self._matting, self._info, self._layout, plans, self._backdrop)
            yield from pictures(self._matting.finish(chain([first], inferences)))
        self._is_complete = True

    def _open_matting(self, layout: Layout) -> Matting | DeviceMatting:
        """Load the model, report what was chosen, and build the matting."""
        choice = self._matting_choice
        network = self._network = self._open_network(self._info, choice, on_wait=self._wait)
        try:
            return self._build_matting(layout, network)
        except BaseException:
            network.backend.close()  # or a keeper would take it for one in use
            raise

    def _wait(self, what: str) -> None:
        """Let the user see what is waited for, and stop it."""
        self._waiting_for = what
        if self._stop.requested:
            raise CancelledError("stopped")

    def _build_matting(self, layout: Layout, network: Network) -> Matting | DeviceMatting:
        choice, model = self._matting_choice, network.model
        self.result.device = network.backend.description
        self.result.model = model.name
        if model.origin == "file":
            self.result.notes.append(f"weights {model.path}: SHA-256 {model.sha256}")
        elif model.reason.startswith("cuda"):
            self.result.notes.append(model.reason)
        load_cv2().setNumThreads(self._budget.opencv)
        temporal = choice.temporal and not self._info.is_still
        return build_matting(self._info, layout, network, choice, temporal=temporal)

    def _write(self, pictures: list[av.VideoFrame]) -> None:
        first = pictures[0]
        assert first.pts is not None
        assert first.time_base is not None
        time_s = float(first.pts * first.time_base)
        for output, picture in zip(self._outputs, pictures, strict=True):
            output.sink.write(picture)
        self._last_s = time_s

    def _close_sinks(self) -> None:
        """Close every sink, even after one fails; raise the first error.

        The sound of a part ends with its last picture.
        """
        if not self._is_complete and self._companions is not None:
            self._companions.stop_s = self._last_s
        errors = []
        for output in self._outputs:
            try:
                output.sink.close()
            except Exception as exc:  # noqa: BLE001 - the first is raised when all are closed
                errors.append(exc)
        if errors:
            raise errors[0]

    def _settle(self, outcome: Outcome, stop: Stop) -> None:
        """Rename, keep or remove the outputs, and fill in the result."""
        result = self.result
        result.frames = outcome.stages[-1].items
        result.elapsed_s = outcome.elapsed_s
        result.media_s = self._last_s
        result.stage_share = {s.name: s.busy_s / outcome.elapsed_s for s in outcome.stages}
        self._report()
        error = outcome.error
        if error is None and self._strict and not outcome.stopped and self._source.damage:
            error = InputError(
                f"{self._source_name}: {self._source.damage[0]} (--strict)",
                hint="leave --strict out to keep what can be read",
            )
        if error is None and not outcome.stopped:
            error = self._commit()
            if error is None:
                return
        if error is not None and not outcome.stopped:
            self._abandon(error)
            raise error
        self._abandon()
        if error is not None:
            result.warnings.append(str(error))
        result.stopped_by = stop.reason

    def _report(self) -> None:
        """Collect notes and warnings of every part."""
        result, source = self.result, self._source
        result.warnings += source.damage
        result.notes += source.notes + source.mended
        for output in self._outputs:
            result.notes += output.plan.notes
            result.notes += output.sink.report.notes
            result.warnings += output.sink.report.losses
            result.copied_streams += output.sink.report.copied
        if self._matting is not None:
            self._report_changes(self._matting.conformer)
        if self._network is not None:  # another engine may have taken over on the way
            result.device = self._network.backend.description
            result.notes += notes_of(self._network.backend)
        result.decoder = source.decoder_name if isinstance(source, FileSource) else ""
        result.encoders = [output.plan.codec for output in self._outputs]
        if self._side is not None and self._side.dropped:
            result.warnings.append(f"{self._side.dropped} packets of sound could not wait; dropped")

    def _report_changes(self, conformer: Conformer) -> None:
        size = f"{self._info.width}x{self._info.height}"
        if conformer.resized:
            self.result.warnings.append(
                f"the picture size changes in the middle: {conformer.resized} pictures from "
                f"{conformer.resized_at_s:.2f} s are scaled to {size}"
            )
        if conformer.reformatted:
            self.result.notes.append(
                f"the pixel format changes in the middle: {conformer.reformatted} pictures are "
                f"converted to {self._info.pix_fmt}"
            )

    def _commit(self) -> OutputError | None:
        """Bring every output to the disk before the first gets its name."""
        try:
            for output in self._outputs:
                output.destination.flush()
            for output in self._outputs:
                output.destination.commit()
                self.result.outputs.append(output.destination.name)
        except OutputError as error:
            return error
        return None

    def _abandon(self, error: BaseException | None = None) -> None:
        """Keep the parts that play, named in the result and by a note on `error`."""
        for destination in self._destinations.values():
            kept = destination.abandon()
            if kept is not None:
                self.result.kept_parts.append(str(kept))
                if error is not None:
                    error.add_note(f"what was finished is in {kept}")


def _bytes_of(item: Frame | Inference | DeviceInference | list[av.VideoFrame]) -> int:
    if isinstance(item, list):
        return sum(plane.buffer_size for picture in item for plane in picture.planes)
    frame = item if isinstance(item, Frame) else item.frame
    return sum(plane.buffer_size for plane in frame.picture.planes)
