"""Tables of the results page are merged from several evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_clip_surgery.evaluation._results import Result, write_results
from tools import results_tables


def test_measures_of_several_folders_are_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {
        "CLIPSurgery": Result({"msc": 1.0}, {"msc": (0.5, 1.2)}, 0.02, 2**20),
        "CLIP": Result({"msc": 2.0, "n_pairs": 3}, {"msc": (-1.0, 3.0)}, 0.01, None),
    }
    second = {
        "CLIP": Result({"msc": 4.0, "text_specificity": 7.0}, {"msc": (3.0, 5.0)}, 0.5, 2**21)
    }
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, results in zip(folders, (first, second), strict=True):
        write_results(results, folder, {})
    results_tables.main(folders)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "| CLIP | +4.0 | 10 | 2 |" in printed
    assert "| CLIPSurgery | +1.0 | 20 | 1 |" in printed
    assert "| CLIP | 7.0 |" in printed
    assert "mSC: 95 % intervals within 1.0" in printed
    assert printed.index("| CLIP | +4.0 | 10 | 2 |") < printed.index(
        "| CLIPSurgery | +1.0 | 20 | 1 |"
    )


def test_a_method_under_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown method 'Mine'"):
        results_tables.merge([{"Mine": Result({}, {}, None, None)}])
