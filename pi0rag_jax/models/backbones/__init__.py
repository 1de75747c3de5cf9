"""Frozen backbones for policy heads: PaliGemma of openpi's checkpoints, a light encoder, and one's own.

Importing the package registers those that come with it.
"""

from pi0rag_jax.models.backbones.base import Backbone, backbone, register_backbone
from pi0rag_jax.models.backbones.light import LightBackbone
from pi0rag_jax.models.backbones.paligemma import PaliGemmaBackbone

__all__ = ["Backbone", "LightBackbone", "PaliGemmaBackbone", "backbone", "register_backbone"]
