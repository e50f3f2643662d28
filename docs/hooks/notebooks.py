"""The notebooks of `tutorials/` as pages of the site."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FOLDER = "tutorials"
#: Relative links from a notebook to files of the repository.
LINKS = re.compile(r'href="(?!https?:)([^"#]+)\.(?:ipynb|md)([#"])')
#: Pages of the site for files outside of `docs/`.
SITE_PATHS = {
    "../docs/": "../",
    "../README.": "../index.",
    "../CHANGELOG.": "../changelog.",
    "../CONTRIBUTING.": "../contributing.",
    "../captum_clip_surgery/demo/MODEL_CARD.": "../model_card.",
}


def names() -> list[str]:
    """Return the file names of the notebooks."""
    return sorted(path.name for path in (ROOT / FOLDER).glob("*.ipynb"))


def title(name: str) -> str:
    """Return the first heading of a notebook."""
    cells = json.loads((ROOT / FOLDER / name).read_text(encoding="utf-8"))["cells"]
    lines = (line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
    heading = next((line for line in lines if line.startswith("# ")), f"# {name}")
    return heading.removeprefix("# ").strip()


def on_config(config: MkDocsConfig) -> None:
    """Add the notebooks to the navigation."""
    pages = next(entry[FOLDER.title()] for entry in config.nav or () if FOLDER.title() in entry)
    pages.extend({title(name): f"{FOLDER}/{name}"} for name in names())


@event_priority(100)  # before the plugin that renders notebooks looks for them
def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the notebooks to the files of the site."""
    for name in names():
        path = f"{FOLDER}/{name}"
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Rewrite links between notebooks and to other files to pages of the site."""
    if not page.file.src_uri.startswith(f"{FOLDER}/"):
        return html
    html = LINKS.sub(r'href="\1.html\2', html)
    for source, page_path in SITE_PATHS.items():
        html = html.replace(f'href="{source}', f'href="{page_path}')
    return html
