"""What docs/measures.md shows runs as shown, and names every measure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.evaluation._results import ALL_COLUMNS

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    torch.manual_seed(0)
    shared: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, shared)
    return shared


def test_every_measure_is_explained(ran: dict[str, Any]) -> None:
    localization, of_data_sets = PAGE.split("## Data sets with labels")
    rows = set(re.findall(r"^\| `(\w+)` \|", localization, flags=re.M))
    assert rows - {"grid_pointing"} == set(ran["values"]) - {"threshold", "n_pairs", "skipped"}
    assert ran["values"]["n_pairs"] == 8
    assert set(ran["intervals"]) == set(ran["values"]) - {"n_pairs", "skipped"}
    told = set(re.findall(r"^\| `(\w+)` \|", of_data_sets, flags=re.M))
    assert rows | told | {"insertion", "deletion"} == set(ALL_COLUMNS) - {"n_pairs", "skipped"}


def test_captum_s_measures_take_surgery(ran: dict[str, Any]) -> None:
    for name in ("unfaithful", "unstable"):
        assert ran[name].shape == (1,)
        assert torch.isfinite(ran[name]).all()
        assert (ran[name] > 0).all()
    assert 0 < float(ran["deletion"]) < 1
    assert 0 < float(ran["insertion"]) < 1


def test_quantus_gets_arrays_of_the_maps(ran: dict[str, Any]) -> None:
    clip, images = ran["clip"], ran["images"]
    height, width = clip.native_size
    assert isinstance(ran["a_batch"], np.ndarray)
    assert ran["a_batch"].shape == (1, 1, height, width)
    maps = LayerCLIPSurgery(clip).attribute(images, 0)
    expected = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")
    np.testing.assert_allclose(ran["a_batch"], expected.detach().numpy(), atol=1e-5)
