"""Tiny models of text and images with their processors, built here: a tokenizer of bytes and small pictures."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from multimodal import randomised
from PIL import Image
from support import train_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}PLACE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
PLACES = {
    "llava": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava_next": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "mllama": "<|image|>",
}
QWENS = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _pil(name: str) -> Any:
    """An image processor that needs no torchvision, whatever the version calls it."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _tokenizer(place: str, *more: str, **named: str) -> Any:
    tokenizer = train_tokenizer(["What is in the picture? A small house. What is two plus three? five"] * 3)
    tokenizer.add_tokens([*dict.fromkeys([*more, *named.values()])], special_tokens=True)
    for name, token in named.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    tokenizer.chat_template = TEMPLATE.replace("PLACE", place)
    return tokenizer


def _without_videos(kind: Any) -> Any:
    """A class of processors that needs no processor of videos, which would need torchvision, nor its own tokenizer."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return (
            None
            if name in ("video_processor", "tokenizer")
            else kind.check_argument_for_proper_class(self, name, argument)
        )

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__module__": __name__})


@functools.cache
def processor_of(family: str) -> Any:
    """The processor of a family of :data:`PLACES`."""
    place = PLACES[family]
    if family == "llava":
        images = _pil("CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return transformers.LlavaProcessor(
            images, _tokenizer(place, "<image>"), 8, "default", num_additional_image_tokens=1
        )
    if family == "llava_next":
        square = {"height": 32, "width": 32}
        images = _pil("LlavaNextImageProcessor")(
            size={"shortest_edge": 32}, crop_size=square, image_grid_pinpoints=PINPOINTS
        )
        return transformers.LlavaNextProcessor(
            images, _tokenizer(place, "<image>"), 8, "default", num_additional_image_tokens=1
        )
    if family == "internvl":
        images = _pil("GotOcr2ImageProcessor")(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
        named = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
        tokenizer = _tokenizer(place, context_image_token=place, **named)
        return _without_videos(transformers.InternVLProcessor)(images, tokenizer, None, image_seq_length=4)
    if family == "mllama":
        images = _pil("MllamaImageProcessor")(size={"height": 32, "width": 32}, max_image_tiles=4)
        tokenizer = _tokenizer(place, "<|image|>", "<|python_tag|>")
        tokenizer.bos_token = "<|system|>"
        return transformers.MllamaProcessor(images, tokenizer)
    if family in QWENS:
        images = _pil("Qwen2VLImageProcessor")(min_pixels=16 * 16, max_pixels=64 * 64, patch_size=4)
        tokens = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
        kind = getattr(transformers, f"{QWENS[family]}Processor")
        return _without_videos(kind)(images, _tokenizer(place, *tokens), None)
    if family == "gemma3":
        images = _pil("Gemma3ImageProcessor")(size={"height": 32, "width": 32})
        tokenizer = _tokenizer(place, boi_token=place, image_token="<image_soft_token>", eoi_token="<end_of_image>")
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    images = _pil("Idefics3ImageProcessor")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    extra = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = _tokenizer(place, *extra, *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)))
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4)  # that of SmolVLM needs num2words


def model_of(family: str, seed: int = 0) -> torch.nn.Module:
    """The model of a family of :data:`PLACES`, of random weights, that knows the tokens of its processor."""
    processor = processor_of(family)

    def token(text: str) -> int:
        return int(processor.tokenizer.convert_tokens_to_ids(text))

    if family == "llava":
        vision = transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=token("<image>"),
            vision_feature_layer=-2,
        )
    elif family == "llava_next":
        config = transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
            text_config=transformers.LlamaConfig(**TEXT), image_token_index=token("<image>"),
            image_grid_pinpoints=PINPOINTS,
        )  # fmt: skip
    elif family == "internvl":
        vision = transformers.InternVLVisionConfig(**TOWER, image_size=[32, 32], patch_size=[8, 8])
        config = transformers.InternVLConfig(
            vision_config=vision, text_config=transformers.Qwen2Config(**TEXT), downsample_ratio=0.5,
            image_token_id=token("<IMG_CONTEXT>"),
        )  # fmt: skip
    elif family == "mllama":
        sizes = {"hidden_size": 32, "intermediate_size": 40, "attention_heads": 4, "image_size": 32, "patch_size": 8}
        sizes |= {"num_hidden_layers": 2, "num_global_layers": 1, "vision_output_dim": 64, "max_num_tiles": 4}
        sizes |= {"supported_aspect_ratios": [[a, b] for a in range(1, 5) for b in range(1, 5) if a * b <= 4]}
        text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "bos_token_id": 4, "eos_token_id": 1}
        config = transformers.MllamaConfig(
            vision_config={**sizes, "intermediate_layers_indices": [1]}, text_config=text,
            image_token_index=token("<|image|>"),
        )  # fmt: skip
    elif family in QWENS:
        text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
        tokens = {f"{name}_token_id": token(f"<|{name}|>") for name in ("vision_start", "vision_end")}
        tokens |= {f"{name}_token_id": token(f"<|{name}_pad|>") for name in ("image", "video")}
        sizes: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "hidden_size": 32}
        sizes |= {
            "qwen2_vl": {"embed_dim": 32, "mlp_ratio": 2},
            "qwen2_5_vl": {"window_size": 16, "fullatt_block_indexes": [1]},
            "qwen3_vl": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        }[family]
        if family != "qwen2_vl":
            sizes |= {"intermediate_size": 40, "out_hidden_size": 32}
        kind = getattr(transformers, f"{QWENS[family]}Config")
        text |= {"head_dim": 8} if family == "qwen3_vl" else {}
        config = kind(text_config=text, vision_config=sizes, tie_word_embeddings=False, **tokens)
    elif family == "gemma3":
        vision = transformers.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8)
        text = transformers.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=64)
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=token("<image_soft_token>"),
            boi_token_index=token("<start_of_image>"), eoi_token_index=token("<end_of_image>"),
        )  # fmt: skip
    else:
        kinds = (transformers.Idefics3Config, transformers.Idefics3VisionConfig)
        if family == "smolvlm":
            kinds = (transformers.SmolVLMConfig, transformers.SmolVLMVisionConfig)
        vision = kinds[1](**TOWER, image_size=32, patch_size=8)
        config = kinds[0](
            vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), scale_factor=2,
            image_token_id=token("<image>"), tie_word_embeddings=False, pad_token_id=0,
        )  # fmt: skip
    return randomised(transformers.AutoModelForImageTextToText.from_config, config, seed)
