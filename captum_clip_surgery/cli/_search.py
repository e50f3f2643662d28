"""Command `search`: the images of a folder or of an export that match a query best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from captum_clip_surgery._utils.pieces import RUN, read_run
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery._utils.text import quantity
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._collection_options import Search
from captum_clip_surgery.cli._images import ImageFiles
from captum_clip_surgery.cli._model import PLACEHOLDER, echo, existing_image, load_model
from captum_clip_surgery.cli._queries import subtract
from captum_clip_surgery.collection import Hit, ImageIndex
from captum_clip_surgery.collection._sheet import contact_sheet
from captum_clip_surgery.preprocessing import load_image
from captum_clip_surgery.queries import ImageQuery, Query
from captum_clip_surgery.visualization import save_figure


def search(options: Search) -> None:
    """Run the command."""
    query = _query(options)
    is_export = (Path(options.source) / RUN).exists()
    files = None if is_export else ImageFiles([options.source])
    clip = load_model(options.clip, PLACEHOLDER, quiet=options.json)
    local = clip.with_queries([query])
    (feature,) = local.text_features().detach().float().cpu().numpy()
    index, folder = _open(options, clip, files)
    hits = index.search(feature, options.top)
    content = {
        "query": local.texts[0],
        "images": len(index),
        "exact": index.exact,
        "hits": [hit._asdict() for hit in hits],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2)
    json_path = options.output / "search.json"
    json_path.write_text(f"{text}\n", encoding="utf-8")
    sheet = _write_sheet(local, hits, folder, options.output / "search.png")
    if options.json:
        print(text)
    else:
        rows = [[str(n), f"{hit.score:+.4f}", hit.name] for n, hit in enumerate(hits, 1)]
        echo(markdown(["rank", "score", "image"], rows, left=0))
        echo(f"\n{local.texts[0]!r} in {quantity(len(index), 'image')}: {json_path}; {sheet}")
    if files is not None:
        files.exit_if_unreadable()


def _query(options: Search) -> Query:
    """Return the query of the options."""
    if (options.query is None) == (options.query_image is None):
        raise ValueError("give either --query or --query-image")
    if options.query is not None:
        query: str | ImageQuery = options.query
    else:
        assert options.query_image is not None
        query = ImageQuery(existing_image(options.query_image))
    return subtract(query, options.minus)


def _open(
    options: Search, clip: ZeroShotClassifier, files: ImageFiles | None
) -> tuple[ImageIndex, Path | None]:
    """Return the index of an export or of files, and the folder that names are relative to."""
    if files is None:
        source = Path(options.source)
        index = ImageIndex.from_export(source, clip, options.exact)
        place = Path(read_run(source)["source"]["place"])
        return index, place if place.is_dir() else None
    names: list[str] = []

    def images() -> Iterator[Image.Image]:
        for path, image in files:
            names.append(str(path))
            yield image
        if not names:
            raise ValueError(f"no image in {options.source} could be read")

    index = ImageIndex.from_images(clip, images(), names, options.batch_size, options.exact)
    return index, Path()


def _write_sheet(
    clip: ZeroShotClassifier, hits: Sequence[Hit], folder: Path | None, path: Path
) -> str:
    """Write the pictures of the images that are found, and return what to say of it."""
    if folder is None or not all((folder / hit.name).is_file() for hit in hits):
        return "without pictures, because the images are not files in the export's source"
    images = [load_image(folder / hit.name) for hit in hits]
    save_figure(contact_sheet(clip, hits, images), path)
    return f"pictures: {path}"
