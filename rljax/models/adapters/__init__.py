"""Parameter-efficient fine-tuning as pytrees: LoRA, prefixes, subsets of the parameters, sparsity masks."""

from rljax.models.adapters.attach import Adaptation, attach, bake, lora, prefix, subset, together
from rljax.models.adapters.low_rank import init, merge, scaled, unmerge
from rljax.models.adapters.peft import load as load_peft
from rljax.models.adapters.peft import save as save_peft
from rljax.models.adapters.prefixes import from_tokens
from rljax.models.adapters.subsets import join, keep, sparse_mask, split, trainable

__all__ = [
    "Adaptation",
    "attach",
    "bake",
    "from_tokens",
    "init",
    "join",
    "keep",
    "load_peft",
    "lora",
    "merge",
    "prefix",
    "save_peft",
    "scaled",
    "sparse_mask",
    "split",
    "subset",
    "together",
    "trainable",
    "unmerge",
]
