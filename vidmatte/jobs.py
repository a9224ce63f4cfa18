"""What a run is asked for, how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class EncodingChoice:
    """How the outputs are encoded; None means the default of the output's kind."""

    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    audio: bool = True


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of the input is used, in seconds of its own time, and how many frames."""

    start_s: float | None = None
    end_s: float | None = None
    frames: int | None = None

    @property
    def length_s(self) -> float | None:
        """How much of the input's time is used, or None for all."""
        return None if self.end_s is None else self.end_s - (self.start_s or 0.0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; `expected_frames` is a guess from the header, or None.

    `waiting_for` says what has to be done before the first frame, where that takes long.
    """

    frames: int
    elapsed_s: float
    expected_frames: int | None
    frame_rate: Fraction
    waiting_for: str = ""


@dataclass(slots=True)
class RunResult:
    """What a run did. `warnings` tell of losses, `notes` of choices and changes."""

    frames: int = 0
    elapsed_s: float = 0.0
    media_s: float = 0.0
    device: str = ""
    model: str = ""
    decoder: str = ""
    encoders: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    kept_parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    copied_streams: int = 0
    stage_share: dict[str, float] = field(default_factory=dict)
    stopped_by: int | None = None
    hanging: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second over the whole run."""
        return self.frames / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that was busy for the largest share of the time."""
        return max(self.stage_share, key=lambda name: self.stage_share[name], default="")
