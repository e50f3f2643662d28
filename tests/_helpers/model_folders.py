"""Folders of models as open_clip and Hugging Face save them, for tests to spoil."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from captum_clip_surgery.demo import MODEL_FOLDER
from tests._helpers.text_towers import VISION, save_text_tower, save_tokenizer

DEMO = Path(MODEL_FOLDER)
CONFIG = "open_clip_config.json"


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file by keys, in which "__" leads to a table within."""
    content = json.loads(path.read_text()) if path.exists() else {}
    for key, value in changes.items():
        *above, last = key.split("__")
        table = content
        for name in above:
            table = table[name]
        table[last] = value
    path.write_text(json.dumps(content))


def write_hugging_face(folder: Path, config_class: str, pooler: str, proj: str) -> None:
    """Write a model with a Hugging Face text tower, as open_clip's `local-dir:` loads it."""
    torch.manual_seed(0)
    save_tokenizer(folder)
    save_text_tower(folder / "text", config_class)
    text = dict(
        hf_model_name=str(folder / "text"),
        hf_tokenizer_name="roberta-base",
        hf_pooler_type=pooler,
        hf_proj_type=proj,
        context_length=20,
    )
    config = dict(embed_dim=24, vision_cfg=dict(VISION), text_cfg=text)
    model = CustomTextCLIP(**copy.deepcopy(config))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    text["hf_model_name"] = "text"
    written = dict(model_cfg=config, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3))
    (folder / CONFIG).write_text(json.dumps(written))
