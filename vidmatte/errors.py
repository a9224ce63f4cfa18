"""The errors that a user can meet: one line of what happened, one of what to do."""

from __future__ import annotations

import errno
import unicodedata


def printable(text: object) -> str:
    """Escape what would act on a terminal: control, format and lone-surrogate characters.

    File names and metadata come from strangers; nothing of them reaches a terminal or report raw.
    """
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode("ascii")
        if unicodedata.category(c) in unsafe
        else c
        for c in str(text)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, be it while a library was loaded."""
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "allocate memory" in str(error)
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number == errno.ENOMEM


class VidmatteError(Exception):
    """A failure that is not our bug: `str(error)` is one printable line.

    `hint` says what to do about it, also in one line, or is None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.hint = None if hint is None else printable(hint)


class UsageError(VidmatteError):
    """What was asked for cannot be meant: options that contradict, names that cannot work."""

    exit_code = 2


class InputError(VidmatteError):
    """The input cannot be read, is not a video or picture, or holds none."""


class OutputError(VidmatteError):
    """The output cannot be written, or exists, or its disk is full."""


class CameraLostError(InputError):
    """The camera is absent, busy or gone, and may come back."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "plug it in, or start it, and run this again")


class VirtualCameraLostError(OutputError):
    """The virtual camera is absent, busy or gone, and may come back."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "`vidmatte cameras` lists what is there")


class ModelError(VidmatteError):
    """Weights are missing, damaged or foreign, or a download failed."""


class BackendError(VidmatteError):
    """The asked-for device or backend is not usable here, or inference failed."""


class CancelledError(VidmatteError):
    """The run was asked to stop; raised inside workers to unwind them, never shown."""

    exit_code = 130
