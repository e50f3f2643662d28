"""Text towers: templates, tokenization, encoding and caching."""

from captum_clip_surgery.models.text.templates import TEMPLATES

__all__ = ["TEMPLATES"]
