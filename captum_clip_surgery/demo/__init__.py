"""The embedded model: its weights, and the scenes it was trained on, with ground-truth masks."""

from pathlib import Path

from captum_clip_surgery.demo.scenes import Scene, Scenes, nouns, prompt_templates, unknown_words

#: Folder with the weights and the configuration of the embedded model.
MODEL_FOLDER = Path(__file__).parent / "model"

__all__ = ["MODEL_FOLDER", "Scene", "Scenes", "nouns", "prompt_templates", "unknown_words"]
