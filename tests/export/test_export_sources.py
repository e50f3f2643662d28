"""Collections of all kinds: which images they have, their names, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from captum_clip_surgery.export import load_maps
from captum_clip_surgery.export._sources import open_source
from captum_clip_surgery.preprocessing import load_image
from tests._helpers.written_export import (
    close,
    encoded,
    expected,
    export,
    scene,
    write_folder,
    write_tar,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_folder(root, 11)
    return root


def test_a_list_names_paths_from_its_own_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", 3)
    (tmp_path / "picture without end").write_bytes(encoded(scene(5), "JPEG"))
    lines = ["pictures/b/s001.png", "", "  pictures/a/s002.png ", "pictures/b/s001.png"]
    lines += ["picture without end", str(tmp_path / "pictures/a/s000.png"), "gone.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    result = export(tmp_path / "list.txt", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == [lines[0], lines[2].strip(), *lines[4:6]]
    for name in maps:
        assert close(maps[name], expected([tmp_path / name])[0])
    assert "no image file" in maps.unreadable["gone.png"]
    assert result.images == 4


@pytest.mark.parametrize("kind", ["folder", "braces", "stars"])
def test_tars_of_webdataset(tmp_path: Path, kind: str) -> None:
    turned = scene(1).convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    clear = scene(2).convert("RGBA")
    clear.putalpha(128)
    pictures = {
        "one.jpg": encoded(scene(0), "JPEG"),
        "dir/turned.JPG": encoded(turned.resize((64, 32)), "JPEG", exif=exif),
        "clear.png": encoded(clear),
        "web.webp": encoded(scene(3), "WEBP", lossless=True),
        "cmyk.jpeg": encoded(scene(4).convert("CMYK"), "JPEG"),
        "pair.left.png": encoded(scene(5)),
        "pair.right.png": encoded(scene(6)),
    }
    first = dict(list(pictures.items())[:3])
    rest = dict(list(pictures.items())[3:])
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/t-0.tar", first | {"clear.json": b"{}", "clear.cls": b"3"})
    write_tar(tmp_path / "in/t-1.tar", {"words.txt": b"none"} | rest)
    ends = {"folder": "", "braces": "/t-{0..1}.tar", "stars": "/*.tar"}
    export(f"{tmp_path}/in{ends[kind]}", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    names = ["one", "dir/turned", "clear", "web", "cmyk", "pair.left.png", "pair.right.png"]
    assert list(maps) == names
    assert "words" in maps.unreadable
    assert maps.size("dir/turned") == (64, 32)  # upright
    for name, content in zip(names, pictures.values(), strict=True):
        (tmp_path / "one").write_bytes(content)
        assert close(maps[name], expected([load_image(tmp_path / "one")])[0]), name
    assert len(list((tmp_path / "out/data").iterdir())) == 2


def test_unreadable_images_are_listed_and_skipped(tmp_path: Path) -> None:
    names = write_folder(tmp_path / "in", 12)
    good = encoded(scene(0))
    bad = {
        names[0]: b"",
        names[3]: good[:200],
        names[4]: b"no picture at all",
        names[5]: good[:40] + bytes(40) + good[80:],
        names[6]: b"GIF89a" + bytes(20),
        names[7]: b"\xff\xd8\xff\xe0" + bytes(100),
    }
    for name, content in bad.items():
        (tmp_path / "in" / name).write_bytes(content)
    # names[4:8] are a whole shard, of which nothing is left.
    result = export(tmp_path / "in", tmp_path / "out", workers=2)
    maps = load_maps(tmp_path / "out")
    assert list(maps.unreadable) == list(bad)
    assert all(maps.unreadable.values())
    assert list(maps) == [name for name in names if name not in bad]
    assert result.images == 6
    with pytest.raises(KeyError, match="cannot be read"):
        maps[names[3]]
    for name in maps:
        assert close(maps[name], expected([tmp_path / "in" / name])[0])
    assert export(tmp_path / "in", tmp_path / "out").images == 0


@pytest.mark.parametrize("damage", ["cut in a file", "cut between", "header", "no tar"])
def test_a_damaged_tar_is_read_as_far_as_it_goes(tmp_path: Path, damage: str) -> None:
    files = {f"s{index}.png": encoded(scene(index)) for index in range(4)}
    path = write_tar(tmp_path / "t.tar", files)
    content = bytearray(path.read_bytes())
    third = sum(512 + -(-len(data) // 512) * 512 for data in list(files.values())[:2])
    if damage == "cut in a file":
        del content[third + 700 :]
    elif damage == "cut between":
        del content[third:]
    elif damage == "header":
        content[third : third + 512] = b"x" * 512
    else:
        content[:] = b"x" * 2000
    path.write_bytes(content)
    export(path, tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == ([] if damage == "no tar" else ["s0", "s1"])
    assert list(maps.unreadable) == ["t.tar"]
    assert "no further" in maps.unreadable["t.tar"]


HOSTILE = [
    "../../up.png",
    "/absolute.png",
    "a/../../b.png",
    "a//b.png",
    "./c.png",
    "dots.in.name.png",
    "__meta__/d.png",
    "new\nline.png",
    "back\\slash\\..\\e.png",
    "ünï%2E.png",
    "x" * 150 + "/" + "y" * 200 + ".png",
]


def test_hostile_names_lead_nowhere(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", {name: encoded(scene(i)) for i, name in enumerate(HOSTILE)})
    before = set(tmp_path.iterdir())
    export(tmp_path / "t.tar", tmp_path / "out")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    maps = load_maps(tmp_path / "out")
    # WebDataset ends keys at the first dot of a file's name.
    assert list(maps) == [webdataset.tariterators.base_plus_ext(name)[0] for name in HOSTILE]
    for index, name in enumerate(maps):
        assert close(maps[name], expected([scene(index)])[0]), name


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(encoded(scene(0)))
    export(tmp_path / "in", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == ["caf\\xe9.png"]
    assert close(maps[name], expected([scene(0)])[0])


def test_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number in range(2):
        files = {"same.png": encoded(scene(number)), f"own{number}.png": encoded(scene(5))}
        write_tar(tmp_path / f"t{number}.tar", files)
    with pytest.warns(UserWarning, match="the second 'same' is called 'same~2'"):
        export(f"{tmp_path}/*.tar", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == ["same", "own0", "same~2", "own1"]
    assert close(maps["same~2"], expected([scene(1)])[0])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    for source, error, message in [
        ("gone", FileNotFoundError, "no folder, list or tar"),
        ("gone.tar", FileNotFoundError, "no tar at"),
        ("gone-*.tar", FileNotFoundError, "no tar at"),
        ("", ValueError, "no pictures"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match=message):
            open_source(tmp_path / "empty" / source)
    (tmp_path / "list").write_text("\n\n")
    with pytest.raises(ValueError, match="is empty"):
        open_source(tmp_path / "list")
    write_tar(tmp_path / "empty/a.tar", {})
    (tmp_path / "empty/a.png").write_bytes(encoded(scene(0)))
    with pytest.raises(ValueError, match="both pictures and tars"):
        open_source(tmp_path / "empty")
    for options, message in [
        ({"batch_size": 0}, "batch_size 0"),
        ({"shard_size": 0}, "shard_size 0"),
        ({"size": 3}, "3"),
    ]:
        with pytest.raises(ValueError, match=message):
            export(folder, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_linked_folders_are_looked_into_though_not_in_circles(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", 3)
    write_folder(tmp_path / "in", 1)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out")
    assert list(load_maps(tmp_path / "out")) == [
        "a/s000.png",
        "linked/a/s000.png",
        "linked/a/s002.png",
        "linked/b/s001.png",
    ]


def test_names_that_come_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_tar(tmp_path / "in" / f"{number}.tar", {"same.png": encoded(scene(number))})
    with pytest.warns(UserWarning, match="3 images have the name of another one"):
        export(tmp_path / "in", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == ["same", "same~2", "same~3", "same~4"]
    assert close(maps["same~4"], expected([scene(3)])[0])
