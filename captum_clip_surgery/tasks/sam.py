"""The Segment Anything Model of transformers, asked by prompts: an image to masks."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from captum_clip_surgery.models import check_sam
from captum_clip_surgery.tasks.points import Prompt, sam_inputs


class Sam:
    """A SAM and its processor.

    Args:
        model: a `transformers.SamModel`, in eval mode.
        processor: its `transformers.SamProcessor`.

    Source: Kirillov et al., "Segment Anything" (ICCV 2023), as transformers carries it.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], device: torch.device) -> Self:
        """Load both from a folder that `save_pretrained` wrote, and from nowhere else.

        Raises:
            FileNotFoundError: no such folder, or no weights in safetensors there.
            ImportError: transformers is not installed.
            ValueError: an option that could lead to code, a download or other files, or more
                parameters than weights.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder of a SAM at {folder}")
        try:
            from transformers import SamImageProcessor, SamModel, SamProcessor
        except ImportError as error:
            raise ImportError(
                "SAM needs transformers; install the extra: pip install 'captum_clip_surgery[sam]'"
            ) from error
        check_sam(Path(folder))
        local: Any = {"local_files_only": True, "use_safetensors": True}
        model: Any = SamModel.from_pretrained(folder, dtype=torch.float32, **local)
        images = SamImageProcessor.from_pretrained(folder, local_files_only=True)
        processor: Any = SamProcessor
        return cls(model.eval().to(device), processor(images))

    @torch.no_grad()
    def masks(self, picture: Image.Image, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """For each prompt the mask that SAM holds best, (H, W) of bool; empty without points."""
        asked = [prompt for prompt in prompts if len(prompt.points)]
        found = iter(self._masks(picture, asked) if asked else [])
        nothing = np.zeros((picture.height, picture.width), dtype=bool)
        return [next(found) if len(prompt.points) else nothing for prompt in prompts]

    def _masks(self, picture: Image.Image, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        inputs = self.processor(images=picture, return_tensors="pt", **sam_inputs([prompts]))
        outputs = self.model(**inputs.to(self.model.device))
        (candidates,) = self.processor.post_process_masks(
            outputs.pred_masks.cpu(),
            inputs["original_sizes"].cpu(),
            inputs["reshaped_input_sizes"].cpu(),
        )
        best = outputs.iou_scores[0].argmax(-1).cpu()
        return [masks[i].numpy() for masks, i in zip(candidates, best, strict=True)]
