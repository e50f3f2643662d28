"""Command `export`: maps of a large collection, by one process or those that `torchrun` starts."""

from __future__ import annotations

import sys

from captum_clip_surgery._utils.distributed import Processes, processes
from captum_clip_surgery.attr import LayerCLIPSurgery
from captum_clip_surgery.cli import _options
from captum_clip_surgery.cli._digests import code_digest
from captum_clip_surgery.cli._model import load_model, read_lines, read_texts
from captum_clip_surgery.export import ExportSummary, export_maps


def export(options: _options.Export) -> None:
    """Run the command."""
    texts = read_texts(options.texts, options.clip)
    with processes(options.timeout) as dist:
        clip = load_model(
            options.clip,
            texts,
            read_lines(options.distractors),
            quiet=not dist.is_main_process,
            device=dist.device,
        )
        summary = export_maps(
            LayerCLIPSurgery(clip, num_blocks=options.num_blocks),
            **vars(options.export),
            dist=dist,
            progress=True,
            about={**vars(options.clip), "code": code_digest()},
        )
        if dist.is_main_process:
            _print_summary(summary, dist)


def _print_summary(summary: ExportSummary, dist: Processes) -> None:
    manifest = summary.manifest
    process = "" if dist.world_size == 1 else f" by process 0 of {dist.world_size}"
    print(
        f"{summary.made} images explained{process}, {summary.made / summary.seconds:.1f} per "
        f"second, {summary.waiting:.0%} of the time waiting for images and the disk.\n"
        f"{manifest['images']} images in {len(manifest['shards'])} shards are in "
        f"{summary.folder}; read them with captum_clip_surgery.export.load_maps."
    )
    unreadable = manifest["unreadable"]
    if unreadable:
        print(
            f"warning: {len(unreadable)} unreadable images are listed in "
            f"{summary.folder}/manifest.json; the first is {unreadable[0]['image']!r}: "
            f"{unreadable[0]['reason']}",
            file=sys.stderr,
        )
