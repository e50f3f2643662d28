"""Web demo: `clip-surgery app` serves a page that shows what CLIP sees, no coding required.

Data flows one way: `_settings` and `_images` hold what the user chose, `_explaining` and `_tabs`
compute it, `_figures` and `_templates` draw it, `_code` and `_files` offer it for download, `_page`
lays it out with Gradio and `_serving` serves it.
"""

from captum_clip_surgery.app._serving import serve

__all__ = ["serve"]
