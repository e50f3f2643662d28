"""Text towers: templates, tokenization, encoding and caching."""

from captum_clip_surgery.models.text.cache import TextCache
from captum_clip_surgery.models.text.encoder import PromptEncoder
from captum_clip_surgery.models.text.templates import TEMPLATES, Template, format_prompt
from captum_clip_surgery.models.text.tokenization import Tokenizer

__all__ = ["TEMPLATES", "PromptEncoder", "Template", "TextCache", "Tokenizer", "format_prompt"]
