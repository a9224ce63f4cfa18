"""Who is there: entering and leaving, neither by one wild answer nor by a moment of doubt."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vidmatte.backends import open_backend
from vidmatte.compute.cpu.temporal import TemporalFilter
from vidmatte.live.presence import Presence, sure_share
from vidmatte.models.registry import resolve_model
from vidmatte.models.table import network_size
from vidmatte.sources.synthetic import SyntheticClip

PERIOD_S = 1 / 30
SOMEBODY, NOBODY, DOUBT = 0.02, 0.0, 0.003


def after(shares: list[float], presence: Presence | None = None, start_s: float = 0) -> list[bool]:
    presence = presence or Presence()
    return [presence.update(share, start_s + i * PERIOD_S) for i, share in enumerate(shares)]


def test_the_share_is_of_the_largest_sure_piece() -> None:
    probability = np.full((100, 200), 0.5, np.float32)
    probability[10:20, 10:30] = 0.9
    probability[60:90, 100:120] = 0.8
    probability[::7, 150:] = 0.95
    assert sure_share(probability, 0.75) == pytest.approx(30 * 20 / 20000)
    assert sure_share(probability, 0.96) == 0


def test_somebody_who_enters_is_there_within_a_few_frames() -> None:
    assert after([NOBODY] * 10 + [SOMEBODY] * 3)[10:] == [False, True, True]


def test_one_wild_answer_is_nobody() -> None:
    assert not any(after([NOBODY] * 5 + [0.5] + [NOBODY] * 5))


def test_doubt_neither_brings_nor_takes_anybody() -> None:
    assert not any(after([DOUBT] * 200))
    presence = Presence()
    after([SOMEBODY] * 5, presence)
    assert all(after([DOUBT] * 200, presence, 5 * PERIOD_S))


def test_a_moment_without_a_sure_pixel_hides_nobody() -> None:
    presence = Presence()
    after([SOMEBODY] * 5, presence)
    assert all(after([NOBODY] * 30 + [SOMEBODY], presence, 5 * PERIOD_S))


@pytest.mark.parametrize("period_s", [1 / 60, 1 / 30, 0.2])
def test_somebody_who_left_is_gone_after_seconds_not_frames(period_s: float) -> None:
    presence = Presence()
    after([SOMEBODY] * 5, presence)
    gone_s = next(t for t in np.arange(0.2, 9, period_s) if not presence.update(NOBODY, t))
    assert 1.0 < gone_s < 2.0


def test_a_long_gap_is_not_a_person() -> None:
    presence = Presence()
    after([SOMEBODY] * 5, presence)
    assert presence.update(SOMEBODY, 1000)
    assert not presence.update(NOBODY, 2000)


@pytest.mark.parametrize(("longer", "part"), [(256, 0.09), (320, 0.05)])
def test_the_networks_answers_tell_an_empty_room_from_a_person(longer: int, part: float) -> None:
    """Every level's size, on the clip whose middle is empty: never wrong but at the edges.

    Who comes in is seen once `part` of the picture is theirs, at 256 px two pictures later.
    """
    model = resolve_model("live")
    width, height = network_size(640, 360, model.row, longer)
    backend = open_backend(model, size=(height, width), device="cpu", threads=1)
    clip = SyntheticClip(width=640, height=360, frame_count=120, scenario="empty")
    presence, temporal, seen = Presence(), TemporalFilter(), {}
    for index in range(0, 120, 2):
        rendered = clip.render(index)
        image = cv2.resize(rendered.image, (width, height), interpolation=cv2.INTER_AREA)
        steady = temporal.push(backend.infer(image[None])[0], image)[0]
        share = sure_share(steady, model.row.curve.hi)
        truth = rendered.alpha.mean() / 255
        seen[index] = presence.update(share, index / 30), truth
        if truth > part and index > 4:
            assert seen[index][0], f"a person vanished in frame {index}"
        if truth == 0:
            assert share < 0.0015, f"frame {index}: furniture looks like a person: {share}"
    assert any(truth > 0.05 for _, truth in seen.values())
    assert any(truth == 0 for _, truth in seen.values())
    backend.close()
