"""The embedded model: its world of scenes, its weights, and how it was trained."""

from pathlib import Path

from captum_clip_surgery.demo.scenes import Scene, Scenes, nouns, prompt_templates, unknown_words

MODEL_FOLDER = Path(__file__).parent / "model"

__all__ = ["MODEL_FOLDER", "Scene", "Scenes", "nouns", "prompt_templates", "unknown_words"]
