"""A byte-level BPE tokenizer in CLIP's format, learned from captions: any text has tokens, common words have one."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from halftone.foundation.errors import ConfigError
from halftone.foundation.files import staged_folder

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
_WORD_END = "</w>"
# CLIP's own way to cut text into words; the files do not hold it, so the training must use the same.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train(texts: Iterable[str], vocabulary: int, folder: Path) -> CLIPTokenizer:
    """Learn merges from ``texts`` and write ``folder``: ``vocab.json``, ``merges.txt`` and the configuration.

    Args:
        vocabulary: tokens at most: 256 bytes, 256 bytes that end a word, the merges, and the two of start and end.

    Raises:
        ConfigError: ``vocabulary`` leaves no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    if vocabulary < len(letters) + 2:
        raise ConfigError("vocabulary", f"at least {len(letters) + 2} tokens", str(vocabulary))
    # Letters that end a word count as merges' raw material, not as learned tokens: so the trainer may learn all the rest.
    merges = _merges(texts, alphabet, vocabulary)[: vocabulary - len(letters) - 2]
    tokens = dict.fromkeys([*letters, *(left + right for left, right in merges), START, END])
    with staged_folder(folder) as stage:
        vocab = {token: number for number, token in enumerate(tokens)}
        (stage / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
        (stage / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": LENGTH,
            "do_lower_case": True,
            "add_prefix_space": False,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        }
        (stage / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load(folder)


def load(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer that ``train`` wrote to ``folder``."""
    return CLIPTokenizer.from_pretrained(folder)


def files(folder: Path) -> dict[str, str]:
    """Return the texts of ``vocab.json`` and ``merges.txt``.

    transformers 5 saves its own single file instead, which transformers 4 does not read; a shipped model has both.
    """
    return {name: (folder / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}


def _merges(texts: Iterable[str], alphabet: list[str], size: int) -> list[tuple[str, str]]:
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END, unk_token=END))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
