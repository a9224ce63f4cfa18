"""A live session over fakes: what it sends, counts, tells and hands back."""

from __future__ import annotations

from live_fakes import Call


def test_pictures_arrive_matted_on_time_and_counted() -> None:
    with Call() as call:
        call.until_matted(30)
        assert call.status.state == "matte"
    assert call.result is not None
    print(call.result, len(call.output.sent))
    assert call.result.hanging == ()
