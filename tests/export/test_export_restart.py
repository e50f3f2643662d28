"""Exports that fail, and what may be gone on with."""

from __future__ import annotations

import copy
import errno
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_clip_surgery import LayerCLIPSurgery, preprocessing
from captum_clip_surgery._utils import progress
from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery.export import _run, export_maps, load_maps
from captum_clip_surgery.export._shards import FORMATS, TarShardWriter
from captum_clip_surgery.export._writing import AsyncShardWriter
from tests._helpers.waiting import wait_until
from tests._helpers.written_export import (
    assert_same,
    encoded,
    export,
    export_whole,
    fail_at,
    finished,
    forked,
    full_disk,
    scene,
    shards,
    states,
    surgery,
    write_broken_folder,
    write_folder,
    write_tar,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_broken_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What an export comes to that nothing befalls, by format."""
    return export_whole(folder, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("where", "call"), [("add", 4), ("add", 5), ("finish", 3), ("_close", 3), ("journal", 3)]
)
def test_a_full_disk_leaves_whole_shards_only(
    folder: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    where: str,
    call: int,
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        owner: Any = CheckpointStore if where == "journal" else FORMATS[format]
        fail_at(patch, owner, "add" if where == "journal" else where, call, full_disk)
        with pytest.raises(OSError, match="No space left"):
            export(folder, output, format=format)
    assert not list((output / "shards").glob("*.part"))
    assert not (output / "manifest.json").exists()
    wanted = shards(whole[format])
    assert shards(output).items() <= wanted.items()
    done = finished(output)
    assert len(done) == (1 if call == 4 else 2)
    before = states(output, sorted(done))
    export(folder, output, format=format, resume=True)
    assert_same(output, whole[format])
    assert states(output, sorted(done)) == before


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The system itself refuses, in the midst of a shard; what went before stays."""
    (tmp_path / "in").mkdir()
    sizes = {"a": 2, "b": 90, "c": 2}
    for name, count in sizes.items():
        files = {f"{name}{i}.png": encoded(scene(i)) for i in range(count)}
        write_tar(tmp_path / f"in/{name}.tar", files)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
        try:
            export(tmp_path / "in", tmp_path / "out")
        except OSError as error:
            os._exit(7 if error.errno == errno.EFBIG else 8)

    process = forked(limited)
    process.join()
    assert process.exitcode == 7
    assert [path.name for path in (tmp_path / "out/shards").iterdir()] == ["000000.tar"]
    result = export(tmp_path / "in", tmp_path / "out", resume=True)
    assert result.made == 92
    load_maps(tmp_path / "out").verify()


def test_an_error_of_the_writer_reaches_the_caller_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained = 0
    original = _run.explain_batch

    def counted(*args: Any) -> Any:
        nonlocal explained
        explained += 1
        time.sleep(0.05)
        return original(*args)

    monkeypatch.setattr(_run, "explain_batch", counted)
    fail_at(monkeypatch, TarShardWriter, "add", 1, full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(folder, tmp_path / "out")
    assert explained <= 3  # of 18


def test_an_error_of_the_model_ends_the_writer(
    folder: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        fail_at(patch, _run, "explain_batch", 10, interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(folder, tmp_path / "out")
    assert not list((tmp_path / "out/shards").glob("*.part"))
    export(folder, tmp_path / "out", resume=True)
    assert_same(tmp_path / "out", whole["webdataset"])


def test_the_queue_is_bounded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk holds the model up, and is said to."""
    sizes = []
    original = AsyncShardWriter._write

    def slow(self: AsyncShardWriter, *args: Any) -> None:
        if not sizes:
            wait_until(self._queue.full, "a full queue")
        sizes.append(self._queue.qsize())
        time.sleep(0.1)
        original(self, *args)

    monkeypatch.setattr(AsyncShardWriter, "_write", slow)
    result = export(folder, tmp_path / "out")
    assert max(sizes) == 4
    assert result.waiting > 0.2


def test_another_export_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export(folder, output)
    before = shards(output)
    with pytest.raises(FileExistsError, match="--resume"):
        export(folder, output)
    for options, changed in [
        ({"size": 96}, "size was"),
        ({"batch_size": 3}, "batch_size was"),
        ({"shard_size": 5}, "shard_size was"),
        ({"top": 1}, "top was"),
        ({"format": "zarr"}, "format was"),
        ({"about": {"code": "x"}}, "code was"),
    ]:
        with pytest.raises(ValueError, match=changed):
            export(folder, output, resume=True, **options)
    clip = surgery().forward_func
    for other, changed in [
        (LayerCLIPSurgery(clip.with_texts(["dog", "pizza"])), "texts was"),
        (LayerCLIPSurgery(clip, num_blocks=1), "method was"),
    ]:
        with pytest.raises(ValueError, match=changed):
            export_maps(other, folder, output, shard_size=4, batch_size=2, size=64, resume=True)
    clip = copy.deepcopy(clip)  # `surgery` is shared with other tests
    for module in clip.model.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh"
    with pytest.raises(ValueError, match=r'activation was "GELU", is "GELU\(tanh\)"'):
        export_maps(
            LayerCLIPSurgery(clip), folder, output, shard_size=4, batch_size=2, size=64, resume=True
        )
    write_folder(tmp_path / "more", 3)
    with pytest.raises(ValueError, match="source"):
        export(tmp_path / "more", output, resume=True)
    assert shards(output) == before


def test_shards_of_nobody_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out/shards").mkdir(parents=True)
    (tmp_path / "out/shards/000000.tar").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match="without a journal"):
        export(folder, tmp_path / "out")
    assert (tmp_path / "out/shards/000000.tar").read_bytes() == b"somebody's"


def test_an_ended_export_is_not_made_again(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out")
    before = states(tmp_path / "out", sorted(finished(tmp_path / "out")))
    assert export(folder, tmp_path / "out", resume=True).made == 0
    assert states(tmp_path / "out", list(before)) == before


def test_a_changed_collection_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its names are the same; a picture is not."""
    names = write_folder(tmp_path / "in", 5)
    export(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / names[3]).write_bytes(encoded(scene(30)))
    with pytest.raises(ValueError, match=r"source\.digest was"):
        export(tmp_path / "in", tmp_path / "out", resume=True)


def test_files_of_others_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "film.mp4.part").write_text("not ours")
    export(folder, tmp_path / "out")
    export(folder, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "film.mp4.part").read_text() == "not ours"


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_faults_of_the_machine_end_the_run_and_are_no_property_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_folder(tmp_path / "in", 6)

    def fault() -> None:
        raise OSError(code, os.strerror(code))

    fail_at(monkeypatch, preprocessing, "open_image", 3, fault)
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        export(tmp_path / "in", tmp_path / "out")
    assert raised.value.__notes__[0].startswith("reading a/s004.png")
    monkeypatch.undo()
    export(tmp_path / "in", tmp_path / "out", resume=True)
    maps = load_maps(tmp_path / "out")
    assert len(maps) == 6
    assert not maps.unreadable


@pytest.mark.parametrize("counted", [True, False])
def test_how_it_goes_on_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    counted: bool,
) -> None:
    """Images where their number is known, otherwise tars."""
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    if counted:
        write_folder(tmp_path / "in", 6)
    else:
        for number in range(2):
            picture = {f"{number}.png": encoded(scene(number))}
            (tmp_path / "in").mkdir(exist_ok=True)
            write_tar(tmp_path / "in" / f"{number}.tar", picture)
    export(tmp_path / "in", tmp_path / "out", progress=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("export: 6 of 6 images" if counted else "export: 2 of 2 shards")


@pytest.mark.parametrize("part", ["ln_final", "visual.ln_post"])
def test_an_export_is_of_one_model(
    folder: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A step between two batches ends it; what lies there goes on with the old model alone."""
    model, output = surgery().forward_func.model, tmp_path / "out"
    weight = model.get_submodule(part).weight

    @torch.no_grad()
    def step() -> None:  # forth and, the next time, back to the bit
        weight.neg_()

    with monkeypatch.context() as patch:
        fail_at(patch, _run, "explain_batch", 4, step)
        with pytest.raises(RuntimeError, match=rf"of the model was changed .*\({part}\)"):
            export(folder, output)
    try:
        with pytest.raises(ValueError, match="weights was"):
            export(folder, output, resume=True)
    finally:
        step()
    export(folder, output, resume=True)
    assert_same(output, whole["webdataset"])


def test_other_settings_are_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    model, output = surgery().forward_func.model, tmp_path / "out"
    export(folder, output)
    eps, model.ln_final.eps = model.ln_final.eps, 0.5
    try:
        with pytest.raises(ValueError, match="model was"):
            export(folder, output, resume=True)
    finally:
        model.ln_final.eps = eps
