"""Checkpoints in Hugging Face's format, and llama2.c's, as models of ours, and back."""

from rljax.models.huggingface.checkpoint import Loaded, load, load_config, save, save_config
from rljax.models.huggingface.settings import Generation

__all__ = ["Generation", "Loaded", "load", "load_config", "save", "save_config"]
