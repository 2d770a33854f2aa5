"""Sentences to BERT token ids: lower case, split at spaces and punctuation, then greedily the longest piece of the vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

UNKNOWN, BEGIN, END, PADDING = "[UNK]", "[CLS]", "[SEP]", "[PAD]"
LONGEST_WORD = 100  # characters; longer words are unknown, as in BERT's own tokenizer


def read_vocabulary(text: str) -> dict[str, int]:
    """vocab.txt, one piece a line: piece -> id."""
    return {piece: number for number, piece in enumerate(text.splitlines())}


def encode(sentences: Sequence[str], vocabulary: Mapping[str, int]) -> dict[str, np.ndarray]:
    """`input_ids`, `token_type_ids`, `attention_mask`, int64 [B, S], padded to the longest sentence."""
    rows = [[BEGIN, *(piece for word in words(s) for piece in pieces(word, vocabulary)), END] for s in sentences]
    length = max(map(len, rows))
    padded = [row + [PADDING] * (length - len(row)) for row in rows]
    ids = np.array([[vocabulary[piece] for piece in row] for row in padded], np.int64)
    mask = np.array([[piece != PADDING for piece in row] for row in padded], np.int64)
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}


def words(sentence: str) -> list[str]:
    """Lower-case words without accents; every punctuation mark is a word of its own."""
    plain = [c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn"]
    return "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest piece that begins the word, then the longest that goes on (`##...`), and so on; else [UNK]."""
    if len(word) > LONGEST_WORD:
        return [UNKNOWN]
    found: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary), None)
        if end is None:
            return [UNKNOWN]
        found.append(prefix + word[start:end])
        start = end
    return found


def _is_punctuation(char: str) -> bool:
    ascii_symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return ascii_symbol or unicodedata.category(char).startswith("P")
