"""The embedded model: its scenes and its weights.

`ZeroShotClassifier.demo` loads the model; `Scenes` are rendered with the exact mask of each object.
"""

from pathlib import Path

from captum_clip_surgery.demo._collection import SceneCollection
from captum_clip_surgery.demo._scenes import Scene, Scenes, nouns, prompt_templates

#: Folder with the weights and the configuration of the embedded model.
MODEL_FOLDER = Path(__file__).parent / "model"

__all__ = ["MODEL_FOLDER", "Scene", "SceneCollection", "Scenes", "nouns", "prompt_templates"]
