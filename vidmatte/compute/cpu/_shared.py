"""What the CPU modules share: OpenCV, loaded when first needed."""

from __future__ import annotations

from types import ModuleType

from vidmatte.errors import VidmatteError


def load_cv2() -> ModuleType:
    """Import OpenCV and return it.

    Raises:
        VidmatteError: it cannot be loaded; on slim images the desktop build misses libGL.

    """
    try:
        import cv2
    except ImportError as exc:
        raise VidmatteError(
            f"OpenCV cannot be loaded: {exc}",
            hint="pip install --force-reinstall opencv-python-headless",
        ) from exc
    module: ModuleType = cv2
    return module
