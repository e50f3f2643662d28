"""What a long run tells while it goes on."""

from __future__ import annotations

import pytest

from captum_clip_surgery._utils import progress
from captum_clip_surgery._utils.drivers import Torchrun
from captum_clip_surgery._utils.progress import track_progress

BATCHES = [[0, 1], [4, 5], [6]]


def lines_of(capsys: pytest.CaptureFixture[str], dist: Torchrun, show: bool = True) -> list[str]:
    """The lines of a run of seven images, shared by two."""
    assert list(track_progress(BATCHES, "points", 7, dist, show)) == BATCHES
    return capsys.readouterr().err.splitlines()


def test_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    lines = lines_of(capsys, Torchrun(0, 2))
    assert [line.split(",")[0] for line in lines] == [
        "points: 4 of 7 images",
        "points: 7 of 7 images",
        "points: 7 of 7 images",  # no more than there are, however they are shared out
    ]
    assert all(" a second, 0:0" in line and line.endswith(" left") for line in lines)
    assert lines_of(capsys, Torchrun(0, 1))[0].startswith("points: 2 of 7 images, ")


def test_the_first_process_alone_tells_and_only_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of(capsys, Torchrun(0, 2)) == []  # it took no half minute
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    assert lines_of(capsys, Torchrun(1, 2)) == []
    assert lines_of(capsys, Torchrun(0, 2), show=False) == []


def test_a_bar_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = lines_of(capsys, Torchrun(0, 2))[-1]
    assert "points: 100%" in bar
    assert "7/7" in bar
    assert "image/s" in bar
