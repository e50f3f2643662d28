"""`export`: maps of a large collection, by one process or as many as `torchrun` starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery._utils.distributed import TIMEOUT_S, Processes, processes
from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.cli.common import (
    Depth,
    Distractors,
    Model,
    Pretrained,
    Size,
    load_model,
    read_lines,
)
from captum_clip_surgery.cli.datasets import code_digest
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.export import FORMATS, ExportSummary, export_maps


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of pictures or .tar files, pattern of .tar files, or list of paths.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the shards.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; repeat for more.")] = None,
    texts: Annotated[Path | None, typer.Option(help="File of texts, one a line.")] = None,
    distractors: Distractors = None,
    format: Annotated[str, typer.Option(help=f"{' or '.join(FORMATS)}.")] = "webdataset",
    top: Annotated[int, typer.Option(min=0, help="How many texts to name of each image.")] = 5,
    size: Size = None,
    num_blocks: Depth = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read ahead.")] = 1,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images in a shard; an input .tar makes one.")
    ] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the export that lies in the folder.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that processes of torchrun wait for each other.")
    ] = TIMEOUT_S,
    model: Model = None,
    pretrained: Pretrained = None,
) -> None:
    """Explain a large collection: maps of every text and image, float16, in checked shards."""
    wanted = [*(text or []), *read_lines(texts)]
    if not wanted and model is None:
        wanted = list(nouns())
    if not wanted:
        raise ValueError("no texts: give --text, once for each, or --texts FILE")
    with processes(timeout) as dist:
        clip = load_model(
            model,
            pretrained,
            wanted,
            read_lines(distractors),
            quiet=not dist.is_main_process,
            device=dist.device,
        )
        exported = export_maps(
            LayerCLIPSurgery(clip, num_blocks=num_blocks),
            source,
            output,
            format,
            top,
            size,
            batch,
            workers,
            shard_size,
            resume,
            dist,
            progress=True,
            about={"model": model, "pretrained": pretrained, "code": code_digest()},
        )
        if dist.is_main_process:
            _report(exported, dist)


def _report(exported: ExportSummary, dist: Processes) -> None:
    manifest = exported.manifest
    rate = exported.made / exported.seconds
    who = "" if dist.world_size == 1 else f" by process 0 of {dist.world_size}"
    print(
        f"{exported.made} images explained{who}, {rate:.1f} a second, "
        f"{exported.waiting:.0%} of the time waiting.\n"
        f"{manifest['images']} images in {len(manifest['shards'])} shards are in "
        f"{exported.folder}; read them with captum_clip_surgery.export.load_maps."
    )
    unreadable = manifest["unreadable"]
    if unreadable:
        first = unreadable[0]
        print(
            f"warning: {len(unreadable)} unreadable, listed in {exported.folder}/manifest.json; "
            f"the first: {first['image']!r}: {first['reason']}",
            file=sys.stderr,
        )
