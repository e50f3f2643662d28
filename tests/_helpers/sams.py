"""A tiny SAM of transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

#: Narrow, and of SAM's real sides.
CONFIG: dict[str, Any] = dict(
    vision_config=dict(
        hidden_size=8, output_channels=16, num_hidden_layers=1, num_attention_heads=1,
        window_size=8, global_attn_indexes=[], mlp_dim=8, num_pos_feats=8,
    ),
    prompt_encoder_config=dict(hidden_size=16, mask_input_channels=4),
    mask_decoder_config=dict(
        hidden_size=16, mlp_dim=8, num_hidden_layers=1, num_attention_heads=2,
        iou_head_hidden_dim=8, iou_head_depth=2,
    ),
)  # fmt: skip


def save_sam(folder: Path, std: float | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny SAM and its processor, and return the folder.

    `std` is that of the weights. Those of transformers are so small that prompts hardly matter.
    """
    torch.manual_seed(0)
    model: Any = transformers.SamModel(transformers.SamConfig(**CONFIG))
    if std is not None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=std)
    model.to(dtype).save_pretrained(folder)
    make_processor: Any = transformers.SamProcessor
    make_processor(transformers.SamImageProcessor()).save_pretrained(folder)
    return folder
