"""Atelier's nodes for ComfyUI; link this folder into ``ComfyUI/custom_nodes``."""

from .concepts import Concepts  # noqa: TID252 (ComfyUI names the package after its folder)

NODE_CLASS_MAPPINGS = {"AtelierConcepts": Concepts}
NODE_DISPLAY_NAME_MAPPINGS = {"AtelierConcepts": "Concepts (LaTexBlend)"}
