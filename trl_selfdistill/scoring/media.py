"""Image inputs of a batch."""

from typing import Any

from torch import nn

_MEDIA_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_PER_TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids")


def media_of(batch: dict[str, Any], width: int | None = None) -> dict[str, Any]:
    """The batch's image inputs, under the names that TRL's log-probability method takes.

    Entries with one value a token are brought to `width` on the left: what stands before the prompt is text, type 0.
    """
    media = {key: batch[key] for key in _MEDIA_KEYS if key in batch}
    if width is not None:
        for key in _PER_TOKEN_KEYS:
            if key in media:
                media[key] = nn.functional.pad(media[key], (width - media[key].size(1), 0))
    return media
