"""Text towers: templates, tokenization, encoding and caching."""

from captum_clip_surgery.models.text._templates import TEMPLATES

__all__ = ["TEMPLATES"]
