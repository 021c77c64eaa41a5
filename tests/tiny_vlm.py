"""The smallest vision-language models and their processors, built on the spot without torchvision."""

from typing import Any

import torch
from tiny_policy import build_tokenizer
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}
# Like most templates of vision-language models, it takes lists of content blocks only.
_CHAT_TEMPLATE = (
    "{{% for m in messages %}}{{{{ '<|' + m['role'] + '|>' }}}}"
    "{{% for block in m['content'] %}}{{% if block['type'] == 'image' %}}{{{{ '{image}' }}}}"
    "{{% else %}}{{{{ block['text'] }}}}{{% endif %}}{{% endfor %}}"
    "{{{{ '<|end|>' }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|assistant|>' }}}}{{% endif %}}"
)


def _tokenizer(*special: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = None  # a processor's template need not be its tokenizer's
    return tokenizer


def _ends(tokenizer: Any) -> dict[str, Any]:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def tiny_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """One row of `pixel_values` an image, four image tokens each."""
    tokenizer = _tokenizer("<image>")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    side, patch = 8, 4
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE.format(image="<image>"),
    )
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        projection_dim=16,
    )
    text = Qwen3Config(vocab_size=len(tokenizer), head_dim=16, **_TEXT, **_ends(tokenizer))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token, tie_word_embeddings=True)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**_ends(tokenizer))
    return model, processor


class _TextAndImages(Qwen2VLProcessor):
    """Without the video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


def tiny_qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Patches of all images in one `pixel_values`, with `image_grid_thw` and `mm_token_type_ids`."""
    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "image_pad", "video_pad")}
    pixels = {"min_pixels": 64, "max_pixels": 256}
    image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=1, **pixels)
    processor = _TextAndImages(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=_CHAT_TEMPLATE.format(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            **_TEXT,
            **_ends(tokenizer),
        },
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.update(**_ends(tokenizer))
    return model, processor
