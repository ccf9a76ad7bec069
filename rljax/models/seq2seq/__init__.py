"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5-1.1 and Flan-T5: an encoder reads the prompt, a decoder
writes.

Differs from the paper: dropout where a layer adds to the residual stream, not of attention's weights.
"""

from rljax.models.seq2seq.config import Seq2SeqConfig
from rljax.models.seq2seq.model import Cache, encoder, logical_axes, seq2seq

__all__ = ["Cache", "Seq2SeqConfig", "encoder", "logical_axes", "seq2seq"]
