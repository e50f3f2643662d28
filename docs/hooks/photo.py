"""The photograph that comes with the package, as an image of the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PHOTO = Path("captum_clip_surgery/demo/coffee.jpg")
ON_SITE = f"images/{PHOTO.name}"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the photograph to the files of the site."""
    path = str(Path(__file__).parents[2] / PHOTO)
    files.append(File.generated(config, ON_SITE, abs_src_path=path))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Rewrite links to the photograph from pages of the top folder."""
    return markdown.replace(f"(../{PHOTO.as_posix()})", f"({ON_SITE})")
