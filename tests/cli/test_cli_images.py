"""Image files that commands are given: which ones, and the names of their results."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from captum_clip_surgery.cli._images import ImageFiles, find_images, unique_stems
from tests._helpers.cases import each

SPELLINGS = ["a.mpo", "b.MPO", "c.heic", "d.JXL", "e.jpe", "f.apng", "g.pgm", "h.tga", "i.hif"]


def test_a_folder_passes_over_no_image(tmp_path: Path) -> None:
    for name in [*SPELLINGS, "notes.txt", "scores.json", "tiff"]:
        Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG")
    assert [path.name for path in find_images([str(tmp_path)])] == SPELLINGS


def test_what_is_not_read_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.mpo", "JPEG")
    files = ImageFiles([str(tmp_path)])
    assert [path.name for path, _ in files] == ["b.mpo"]
    assert (
        "a.jxl cannot be read as an image: JPEG XL is not read; convert" in capsys.readouterr().err
    )
    assert [path.name for path, _ in files] == ["b.mpo"]  # a second pass reports nothing again
    assert not capsys.readouterr().err
    with pytest.raises(SystemExit, match="1 of 2 images were skipped"):
        files.exit_if_unreadable()


NAMES = {
    ("a/x.png", "b/x.jpg", "c/x.png", "y.png"): ["x", "x-2", "x-3", "y"],
    ("a/x.png", "x-2.png", "b/x.png", "c/x.png"): ["x", "x-2", "x-3", "x-4"],
    ("x-2.png", "a/x.png", "b/x.png", "c/x-2.png"): ["x-2", "x", "x-3", "x-2-2"],
}


@each("paths", NAMES)
def test_names_of_results(paths: tuple[str, ...]) -> None:
    assert unique_stems(list(map(Path, paths))) == NAMES[paths]


def test_names_of_many_results_take_no_quadratic_time() -> None:
    """Comparing each with each would take minutes, which the limit of the processor ends."""
    paths = [Path(f"{number}/image.jpg") for number in range(50_000)]
    stems = unique_stems(paths)
    assert stems[-1] == "image-50000"
    assert len(set(stems)) == len(paths)


def test_missing_files_are_found_at_once_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    names = [str(tmp_path / f"{number}.png") for number in range(7)]
    with pytest.raises(FileNotFoundError, match=r"0.png, .*4.png and 2 more$"):
        ImageFiles([str(tmp_path / "a.png"), *names])
