"""What CLIP Surgery enables: segmentation, recognition, points for SAM, maps for words."""

from captum_clip_surgery.tasks.multimodal import WordMaps, maps_of_own_texts, word_maps
from captum_clip_surgery.tasks.points import Prompt, points_from_map, prompts, sam_inputs
from captum_clip_surgery.tasks.recognition import Recognition, recognize
from captum_clip_surgery.tasks.segmentation import Segmentation, class_scores, segment

__all__ = [
    "Prompt",
    "Recognition",
    "Segmentation",
    "WordMaps",
    "class_scores",
    "maps_of_own_texts",
    "points_from_map",
    "prompts",
    "recognize",
    "sam_inputs",
    "segment",
    "word_maps",
]
