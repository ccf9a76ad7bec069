"""The world of text: tokenizers, data, pretrained models with theirs, generation, and tokens as an Env."""

from rljax.text import data, rewards, tasks
from rljax.text.batched_generation import decode_many
from rljax.text.byte_pair_tokenizer import byte_pair_tokenizer
from rljax.text.corpus import Corpus
from rljax.text.decoding import Sampling
from rljax.text.generate import Completion, generate, stream
from rljax.text.load import Pretrained, load_pretrained, load_tokenizer, sampling_defaults
from rljax.text.problem import Problem, problem
from rljax.text.score import score
from rljax.text.token_env import token_env
from rljax.text.tokenizer import Chat, Tokenizer, character_tokenizer, check_vocabulary
from rljax.text.word_tokenizer import word_tokenizer

__all__ = [
    "Chat",
    "Completion",
    "Corpus",
    "Pretrained",
    "Problem",
    "Sampling",
    "Tokenizer",
    "byte_pair_tokenizer",
    "character_tokenizer",
    "check_vocabulary",
    "data",
    "decode_many",
    "generate",
    "load_pretrained",
    "load_tokenizer",
    "problem",
    "rewards",
    "sampling_defaults",
    "score",
    "stream",
    "tasks",
    "token_env",
    "word_tokenizer",
]
