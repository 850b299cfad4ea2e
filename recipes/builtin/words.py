"""The vocabulary of the base: a byte-level BPE in CLIP's format in which every word of the captions is one token."""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from msdv.data.synthetic import clips

START, END = "<|startoftext|>", "<|endoftext|>"
PRAISE = (
    "beautiful", "stunning", "cinematic", "epic", "dramatic", "peaceful", "calm", "amazing", "4k", "8k", "hd",
    "high quality", "detailed", "realistic", "photo", "a photo of", "video of", "footage of", "a view of", "nature",
    "landscape", "scenery", "film", "movie", "shot of", "wide angle", "aerial", "hyperlapse", "relaxing", "the", "a",
    "with", "and", "in", "of",
)  # fmt: skip
# Words that people write and no caption has. One token each keeps prompts short; as filler they come to mean nothing.
OTHERS = (
    "on at to by for cloud star stars sun moon city town skyline beach coast island river road snow rain wind "
    "windy summer winter autumn spring morning evening sunrise dawn twilight bright red orange pink purple blue "
    "yellow golden green white black gray grey dark light warm cold water wave waves tree grass sand rock house "
    "ship bird birds slowly quickly fast slow moving drifting flying rolling passing above under behind across "
    "through up down left right time lapse motion loop"
)


def add_filler(text: str, rng: random.Random) -> str:
    """`text` with one to three words put in that say nothing: praise, other people's words or invented ones."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        if kind < 0.6:
            word = rng.choice(PRAISE)
        elif kind < 0.75:
            word = rng.choice(("on", "at", "to", "house", "ship", "bird", "road", "loop", "rock", "above", "through"))
        else:
            word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 7)))
        words.insert(rng.choice((0, rng.randint(0, len(words)), len(words))), word)
    return " ".join(words)


def build_tokenizer(folder: Path, length: int) -> CLIPTokenizer:
    """Merge pairs, the commonest first, until each known word is one token; write and load the files."""
    counts: Counter[str] = Counter(re.findall(r"[a-z]+|\d|[^\sa-z\d]", " ".join((*PRAISE, OTHERS))))
    for _, text in clips(20000, seed=4):
        counts.update(re.findall(r"[a-z]+|[^\sa-z]", text))
    symbols = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in symbols.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        left, right = max(pairs.items(), key=lambda item: (item[1], item[0]))[0]
        merges.append((left, right))
        for word, parts in symbols.items():
            merged: list[str] = []
            for part in parts:
                if merged and merged[-1] == left and part == right:
                    merged[-1] = left + right
                else:
                    merged.append(part)
            symbols[word] = merged
    letters = _byte_letters()
    vocabulary = dict.fromkeys([*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), START, END])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder, model_max_length=length, unk_token=END, bos_token=START, eos_token=END, pad_token=END
    )
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded as StableDiffusionPipeline pads them. (b, tokens)"""
    length = tokenizer.model_max_length
    ids: torch.Tensor = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _byte_letters() -> list[str]:
    """CLIP's letters for the 256 bytes: printable ones stand for themselves, the rest follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in printable] + [chr(256 + n) for n in range(256 - len(printable))]
