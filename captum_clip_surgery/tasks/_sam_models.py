"""Models that turn prompts into masks: SAM and SAM 2 of transformers, and original SAM files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery.models._checkpoints import check_checkpoint
from captum_clip_surgery.models._schema import read_json
from captum_clip_surgery.models._transformers_files import check_sam, sam2_parts
from captum_clip_surgery.tasks._prompts import Prompt
from captum_clip_surgery.tasks._sam import sam_inputs

#: segment_anything's name of a model, by the width of its image encoder.
ORIGINALS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
#: The weight whose first side is that width.
WIDTH_KEY = "image_encoder.patch_embed.proj.weight"
#: Beginning of names in original checkpoints of SAM 2.
SAM2_PREFIX = "sam_mask_decoder."


class Sam:
    """A SAM or SAM 2 of transformers and its processor: prompts to masks.

    Args:
        model: A `transformers.SamModel` or `Sam2Model` in eval mode.
        processor: Its `transformers.SamProcessor` or `Sam2Processor`.

    References:
        Kirillov et al.: Segment Anything. ICCV 2023. Ravi et al.: SAM 2: Segment Anything in Images
        and Videos. ICLR 2025. Both as implemented in transformers.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @staticmethod
    def from_pretrained(path: str | PathLike[str], device: torch.device) -> Sam:
        """Load a model, without downloading anything.

        Args:
            path: A folder that transformers' `save_pretrained` wrote, with a SAM or SAM 2 (also one
                for videos, of which the part for images is used), or an original checkpoint file of
                SAM, such as sam_vit_b_01ec64.pth.
            device: The model's device.

        Raises:
            FileNotFoundError: If there is no such folder or file, or no safetensors weights in the
                folder.
            ImportError: If transformers, or segment_anything for an original checkpoint, is not
                installed or too old.
            ValueError: If an option could lead to code, a download or other files, weights are
                missing, or the file is not a checkpoint of SAM.
        """
        path = Path(path)
        if path.is_dir():
            return _load_folder(path, device)
        if not path.is_file():
            raise FileNotFoundError(f"no folder or file of a SAM at {path}")
        return _OriginalSam(_load_original(path, device))

    @torch.no_grad()
    def masks(self, image: Image.Image, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Return the mask (H, W) of bool that SAM rates best for each prompt.

        Args:
            image: The image.
            prompts: Its prompts; the mask of one without points is empty.
        """
        pointed = [prompt for prompt in prompts if len(prompt.points)]
        results = iter(self._masks(image, pointed) if pointed else [])
        empty = np.zeros((image.height, image.width), dtype=bool)
        return [next(results) if len(prompt.points) else empty for prompt in prompts]

    def _masks(self, image: Image.Image, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        inputs = self.processor(images=image, return_tensors="pt", **sam_inputs([prompts]))
        outputs = self.model(**inputs.to(self.model.device))
        # SAM pads an image, whose reshaped size it needs; SAM 2 squashes it.
        names = ("original_sizes", "reshaped_input_sizes")
        sizes = [inputs[name].cpu() for name in names if name in inputs]
        (candidates,) = self.processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        best = outputs.iou_scores[0].argmax(-1).cpu()
        return [masks[i].numpy() for masks, i in zip(candidates, best, strict=True)]


class _OriginalSam(Sam):
    """A SAM of the library segment_anything.

    Args:
        predictor: Its `SamPredictor`.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor

    def _masks(self, image: Image.Image, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        self.predictor.set_image(np.asarray(image.convert("RGB")))
        results = []
        for prompt in prompts:
            masks, scores, _ = self.predictor.predict(**prompt.for_predictor())
            results.append(masks[scores.argmax()])
        return results


def _load_folder(folder: Path, device: torch.device) -> Sam:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "SAM needs transformers; install the extra: pip install 'captum_clip_surgery[sam]'"
        ) from error
    library: Any = transformers
    kind = check_sam(folder)
    options: dict[str, Any] = {"local_files_only": True}
    name = {"sam": "Sam", "sam2": "Sam2"}[kind]
    images = getattr(library, f"{name}ImageProcessor").from_pretrained(folder, **options)
    processor = getattr(library, f"{name}Processor")(images)
    if kind == "sam2":
        parts = sam2_parts(read_json(folder / "config.json"))
        options["config"] = library.Sam2Config(**parts)
    model, report = getattr(library, f"{name}Model").from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    _check_complete(folder, report["missing_keys"])
    return Sam(model.eval().to(device), processor)


def _load_original(path: Path, device: torch.device) -> Any:
    """Return segment_anything's predictor with the weights of a checkpoint file."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected a checkpoint of SAM")
    check_checkpoint(path)
    state = torch.load(path, "cpu", weights_only=True)
    state = state.get("model", state) if isinstance(state, dict) else {}
    if any(str(name).startswith(SAM2_PREFIX) for name in state):
        raise ValueError(
            f"{path} is an original checkpoint of SAM 2, which is not read; pass the same model in "
            "transformers' form: a folder of facebook/sam2.1-hiera-... from the Hugging Face hub"
        )
    weight = state.get(WIDTH_KEY)
    width = len(weight) if isinstance(weight, Tensor) and weight.ndim == 4 else None
    if width not in ORIGINALS:
        raise ValueError(
            f"{path} is not a checkpoint of SAM: expected {WIDTH_KEY} with a first side of "
            f"{', '.join(map(str, ORIGINALS))}"
        )
    try:
        import segment_anything
    except ImportError as error:
        raise ImportError(
            "original checkpoints of SAM need segment_anything: pip install segment-anything"
        ) from error
    library: Any = segment_anything
    model = library.sam_model_registry[ORIGINALS[width]]()
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not a checkpoint of SAM: {error_message(error):.300}"
        ) from None
    _check_complete(path, missing)
    return library.SamPredictor(model.eval().to(device))


def _check_complete(path: Path, missing: Collection[str]) -> None:
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} weights of a SAM, such as {min(missing)}; save the whole "
            "model"
        )
