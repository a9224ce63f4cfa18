"""Errors of mattes against hand-computed cases, and what must not change them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from vidmatte.evaluation.video_metrics import (
    METRICS,
    Comparison,
    FrameErrors,
    conn,
    dtssd,
    grad,
    mad,
    means,
    mse,
)

Alpha = NDArray[np.uint8]
# Sums over a picture in float32, in another order.
ROUNDING = 1e-5
# OpenCV filters equal pictures a little differently where they lie differently in memory.
NOTHING = 1e-12


def empty(height: int = 40, width: int = 60) -> Alpha:
    return np.zeros((height, width), np.uint8)


def blob(seed: int = 0, height: int = 40, width: int = 60) -> Alpha:
    """A smooth matte with soft edges, whole inside, no side like another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    angle = np.arctan2(y - height / 2, x - width / 2)
    radius = np.hypot(y - height / 2, x - width / 2) - 3 * np.sin(3 * angle + rng.uniform(0, 6))
    noise = rng.normal(0, 0.02, (height, width))
    return (255 * np.clip((15 - radius) / 6 + noise, 0, 1)).astype(np.uint8)


def unit(alpha: Alpha) -> NDArray[np.float32]:
    return alpha.astype(np.float32) / 255


def errors_of(alpha: Alpha, truth: Alpha) -> FrameErrors:
    return Comparison(conn=True).add(alpha, truth)


def video_errors(alphas: list[Alpha], truths: list[Alpha]) -> dict[str, float]:
    comparison = Comparison(conn=True)
    return dict(means(comparison.add(a, t) for a, t in zip(alphas, truths, strict=True)))


def test_mad_and_mse_of_a_known_error() -> None:
    truth, alpha = empty(10, 10), empty(10, 10)
    alpha[0, :5] = 51  # .2 on 5 of 100 pixels
    assert errors_of(alpha, truth).mad == pytest.approx(1e3 * 0.05 * 0.2, rel=ROUNDING)
    assert errors_of(alpha, truth).mse == pytest.approx(1e3 * 0.05 * 0.04, rel=ROUNDING)


def test_dtssd_of_one_pixel_that_flickers() -> None:
    truth, lit = empty(10, 10), empty(10, 10)
    lit[3, 4] = 255
    comparison = Comparison()
    assert comparison.add(truth, truth).dtssd is None
    first, second = comparison.add(lit, truth).dtssd, comparison.add(lit, truth).dtssd
    assert first == pytest.approx(1e2 * math.sqrt(1 / 100))
    assert second == 0


def test_a_constant_error_has_no_dtssd_though_the_subject_moves() -> None:
    truths = [np.roll(blob() // 2, n, axis=1) for n in range(3)]
    result = video_errors([t + np.uint8(20) for t in truths], truths)
    assert result["dtssd"] == pytest.approx(0, abs=1e-4)
    assert result["mad"] == pytest.approx(1e3 * 20 / 255, rel=ROUNDING)


def test_grad_of_a_step_is_the_gaussian_of_its_distance() -> None:
    alpha = empty(40, 60)
    alpha[:, 30:] = 255
    # The derivative of a Gaussian, summed from the step on, is that Gaussian; across a step along
    # y the smoothing sums the whole kernel. Both kernels have unit norm.
    x = np.arange(-5, 6)
    g = np.exp(-(x**2) / (2 * 1.4**2))
    slope = (x * g) / np.linalg.norm(x * g)
    smooth = g.sum() / np.linalg.norm(g)
    response = np.array([slope[k:].sum() * smooth for k in range(11)])
    expected = 40 * np.square(response[1:]).sum() / 1e3
    assert grad(unit(alpha), unit(empty(40, 60))) == pytest.approx(expected, rel=1e-4)


def test_grad_does_not_see_a_shift_in_brightness() -> None:
    shifted = blob() // 2 + np.uint8(40)
    assert grad(unit(shifted), unit(blob() // 2)) == pytest.approx(0, abs=1e-6)


def test_conn_of_a_detached_blob_is_its_alpha() -> None:
    truth = empty()
    truth[10:30, 10:30] = 255
    alpha = truth.copy()
    alpha[5:10, 45:55] = 204  # .8 on 50 pixels that nothing connects
    assert conn(alpha, truth) == pytest.approx(50 * 0.8 / 1e3, rel=ROUNDING)


def test_conn_forgives_an_error_that_hangs_on_and_is_below_theta() -> None:
    truth = empty()
    truth[10:30, 10:30] = 255
    alpha = truth.copy()
    alpha[10:30, 30:35] = 38  # .149: connected up to 0, exceeds that by less than .15
    assert conn(alpha, truth) == 0
    alpha[10:30, 30:35] = 39  # .153
    assert conn(alpha, truth) == pytest.approx(100 * 39 / 255 / 1e3, rel=ROUNDING)


def test_conn_keeps_the_larger_of_two_regions() -> None:
    alpha = empty()
    alpha[5:25, 5:25] = 255  # 400 pixels
    alpha[30:35, 40:55] = 255  # 75
    bridged = alpha.copy()
    bridged[10, 25:60] = 255
    bridged[10:35, 54] = 255
    assert conn(alpha, alpha) == 0
    assert conn(bridged, alpha) == pytest.approx((35 + 24 - 5) / 1e3, rel=ROUNDING)


def test_conn_does_not_connect_over_corners() -> None:
    alpha = empty()
    alpha[10:20, 10:20] = 255
    alpha[20, 20] = 255
    faint = alpha.copy()
    faint[20, 20] = 0
    # Both are connected to 1 in the square; the pixel at the corner hangs on in neither.
    assert conn(alpha, faint) == pytest.approx(1 / 1e3, rel=ROUNDING)
    assert conn(alpha, alpha) == 0


def test_conn_counts_thresholds_exactly() -> None:
    # 51 / 255 is .2, on the threshold; float32 would put it below.
    alpha, truth = np.full((4, 4), 51, np.uint8), np.full((4, 4), 89, np.uint8)  # .349
    assert conn(alpha, truth) == 0  # exceeds .2 by .149
    truth[:] = 90
    assert conn(alpha, truth) == pytest.approx(16 * (90 / 255 - 0.2) / 1e3, rel=ROUNDING)


def test_equal_mattes_have_no_errors() -> None:
    clip = [blob(n) for n in range(3)]
    assert video_errors(clip, clip) == pytest.approx(dict.fromkeys(METRICS, 0.0), abs=NOTHING)


@pytest.mark.parametrize("truth", [empty(), blob(1), np.full((40, 60), 255, np.uint8)])
def test_empty_and_whole_frames_have_finite_errors(truth: Alpha) -> None:
    clip = [truth, truth]
    for other in (empty(), blob(2), np.full((40, 60), 255, np.uint8)):
        assert all(math.isfinite(v) for v in video_errors([other, truth], clip).values())
    assert video_errors(clip, clip) == pytest.approx(dict.fromkeys(METRICS, 0.0), abs=NOTHING)


def test_an_empty_frame_that_lights_up_is_an_error_in_every_metric() -> None:
    lit = empty()
    lit[10:20, 10:20] = 255
    result = video_errors([empty(), lit], [empty(), empty()])
    assert all(value > 0 for value in result.values())


CLIPS = [blob(n) for n in range(3)], [blob(n + 7) for n in range(3)]


def test_all_metrics_are_symmetric() -> None:
    assert video_errors(*CLIPS) == pytest.approx(video_errors(*reversed(CLIPS)), rel=ROUNDING)


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.transpose, np.rot90])
def test_turning_both_changes_nothing(turn: object) -> None:
    assert callable(turn)
    turned = [[np.ascontiguousarray(turn(a)) for a in clip] for clip in CLIPS]
    assert video_errors(*turned) == pytest.approx(video_errors(*CLIPS), rel=ROUNDING)


def test_means_keep_and_sums_grow_with_the_empty_area_around() -> None:
    # Twice the width of empty frame: MAD, MSE halve; dtSSD falls by the root; sums stay.
    wide = [[np.pad(a, ((0, 0), (0, 60))) for a in clip] for clip in CLIPS]
    before, after = video_errors(*CLIPS), video_errors(*wide)
    assert after["mad"] == pytest.approx(before["mad"] / 2, rel=ROUNDING)
    assert after["mse"] == pytest.approx(before["mse"] / 2, rel=ROUNDING)
    assert after["dtssd"] == pytest.approx(before["dtssd"] / math.sqrt(2), rel=ROUNDING)
    assert after["grad"] == pytest.approx(before["grad"], rel=ROUNDING)
    assert after["conn"] == pytest.approx(before["conn"], rel=ROUNDING)


def test_errors_grow_with_the_error() -> None:
    truth = blob()
    faint = [errors_of((truth * k).astype(np.uint8), truth) for k in (0.9, 0.6, 0.3)]
    for name in ("mad", "mse", "grad", "conn"):
        values = [getattr(errors, name) for errors in faint]
        assert all(low < high for low, high in pairwise(values)), name


def test_depths_agree() -> None:
    alpha, truth = blob(1), blob(2)
    deep = [(a.astype(np.uint16) * 257) for a in (alpha, truth)]
    expected = errors_of(alpha, truth)
    for a, t in ((deep[0], deep[1]), (alpha, deep[1]), (deep[0], truth)):
        result = Comparison(conn=True).add(a, t)
        for name in ("mad", "mse", "grad", "conn"):
            assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-4)


def test_dtssd_needs_no_order_of_the_differences() -> None:
    a, b = unit(blob(1)) - unit(blob(2)), unit(blob(3)) - unit(blob(4))
    assert dtssd(a, b) == dtssd(b, a)
    assert mad(a) == mad(-a)
    assert mse(a) == mse(-a)


def test_means_leave_out_what_is_not_known() -> None:
    errors = [FrameErrors(1, 2, 3, None, None), FrameErrors(3, 4, 5, None, 7)]
    assert means(errors) == {"mad": 2, "mse": 3, "grad": 4, "dtssd": 7}
    assert means([]) == {}


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\)"):
        Comparison().add(blob(), empty(60, 40))
    with pytest.raises(ValueError, match="3"):
        Comparison().add(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
