"""Text towers: templates, tokenization, encoding and caching."""

from captum_clip_surgery.models.text._tracing import (
    TextTrace,
    check_text_blocks,
    text_until_end,
    trace_text_blocks,
)
from captum_clip_surgery.models.text.cache import TextCache
from captum_clip_surgery.models.text.encoder import PromptEncoder
from captum_clip_surgery.models.text.features import EncodedTexts, GivenFeatures, TextFeatures
from captum_clip_surgery.models.text.templates import (
    TEMPLATES,
    Template,
    check_texts,
    format_prompt,
    truncate_repr,
)
from captum_clip_surgery.models.text.tokenization import Tokenizer
from captum_clip_surgery.models.text.words import END, START, word_positions

__all__ = [
    "END",
    "START",
    "TEMPLATES",
    "EncodedTexts",
    "GivenFeatures",
    "PromptEncoder",
    "Template",
    "TextCache",
    "TextFeatures",
    "TextTrace",
    "Tokenizer",
    "check_text_blocks",
    "check_texts",
    "format_prompt",
    "text_until_end",
    "trace_text_blocks",
    "truncate_repr",
    "word_positions",
]
