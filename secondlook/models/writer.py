"""The network of the learned critic: it reads a Scenes picture and a prompt, tells whether they match, and writes a remark.

``Tokens`` (verify/networks.py), from weights of its own, reads; a causal transformer writes the remark word by word while it
attends to the picture's tokens and to the prompt's words. Shapes: P pictures, K prompts for each, N = P * K, T tokens of a
remark, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError
from secondlook.models import checkpoint
from secondlook.models.eyes import SIDE
from secondlook.models.layers import Attention, FeedForward
from secondlook.verify.networks import NetworkConfig, Reading, Tokens
from secondlook.worlds.scenes.grammar import WORDS
from secondlook.worlds.scenes.remarks import LONGEST, REMARK_WORDS, spoken, tokens

PAD, OPEN, CLOSE, FIRST = 0, 1, 2, 3  # ids of a remark's tokens; its words follow

Memory = tuple[Tensor, Tensor]  # keys and values, [N, heads, T, W / heads]


@dataclass(frozen=True)
class WriterConfig:
    """Sizes of a writer. words: of prompts; said: of remarks. ``depth``, ``read``, ``write``: blocks that see the picture alone, that
    read the prompt beside it, and that write."""

    words: tuple[str, ...] = WORDS
    said: tuple[str, ...] = REMARK_WORDS
    stem: int = 48
    width: int = 96
    depth: int = 2
    read: int = 3
    write: int = 3
    heads: int = 4
    text_length: int = 16
    longest: int = LONGEST

    def reader(self) -> NetworkConfig:
        """The part that reads."""
        return NetworkConfig("tokens", self.words, self.stem, self.width, self.depth, self.read, self.heads,
                             self.text_length, rules=False)  # fmt: skip


def to_ids(texts: Sequence[str], said: Sequence[str] = REMARK_WORDS, longest: int = LONGEST) -> Tensor:
    """Remarks as int64 [N, longest + 1]: words, then ``CLOSE``, then ``PAD``. Of a remark too long the whole clauses that fit.
    ConfigError for a word outside the vocabulary."""
    known = {word: i + FIRST for i, word in enumerate(said)}
    ids = torch.zeros(len(texts), longest + 1, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        words = tokens(text)
        while len(words) > longest:
            words = words[: len(words) - 1 - words[::-1].index(";")] if ";" in words else words[:longest]
        other = [w for w in words if w not in known]
        if other:
            raise ConfigError(f'The remark "{text}" is not in the language of remarks: it does not know "{other[0]}".')
        row[: len(words) + 1] = torch.tensor([*(known[w] for w in words), CLOSE])
    return ids


def to_text(ids: Sequence[int], said: Sequence[str] = REMARK_WORDS) -> str | None:
    """The text of a remark's ids up to ``CLOSE``; None where that never comes."""
    if CLOSE not in ids:
        return None
    return spoken([said[i - FIRST] for i in ids[: list(ids).index(CLOSE)]])


class Writing(nn.Module):
    """One block: the words so far, the picture and the prompt, feed-forward. Keys and values are made apart from queries, so that
    what does not change while a remark is written is computed once."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attend = Attention(width, heads)
        self.look = Attention(width, heads, width)
        self.feed = FeedForward(width, 3.0)

    def forward(self, x: Tensor, source: Memory, mask: Tensor) -> Tensor:
        """x [N, T, W]; source: ``memory`` of what is looked at, mask bool [N, 1, 1, S]. Every word sees those up to itself."""
        y = self.norms[0](x)
        x = x + asked(self.attend, y, memory(self.attend, y), None, causal=True)
        return self._rest(x, source, mask)

    def step(self, x: Tensor, past: Memory | None, source: Memory, mask: Tensor) -> tuple[Tensor, Memory]:
        """One word more, x [N, 1, W], after those in ``past``; returns it with the longer past."""
        y = self.norms[0](x)
        now = memory(self.attend, y)
        past = now if past is None else (torch.cat([past[0], now[0]], 2), torch.cat([past[1], now[1]], 2))
        return self._rest(x + asked(self.attend, y, past, None), source, mask), past

    def _rest(self, x: Tensor, source: Memory, mask: Tensor) -> Tensor:
        x = x + asked(self.look, self.norms[1](x), source, mask)
        out: Tensor = x + self.feed(self.norms[2](x))
        return out


def memory(attention: Attention, source: Tensor) -> Memory:
    """An attention's keys and values of ``source`` [N, S, W]."""
    k, v = (f(source).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for f in (attention.to_k, attention.to_v))
    with torch.autocast(source.device.type, enabled=False):
        return attention.k_norm(k.float()), v.float()


def asked(attention: Attention, x: Tensor, held: Memory, mask: Tensor | None, causal: bool = False) -> Tensor:
    """What queries x [N, T, W] find in a memory."""
    q = attention.to_q(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    with torch.autocast(x.device.type, enabled=False):  # as in Attention
        y = F.scaled_dot_product_attention(attention.q_norm(q.float()), *held, attn_mask=mask, is_causal=causal)
    out: Tensor = attention.out(y.transpose(1, 2).flatten(2))
    return out


class Writer(nn.Module):
    """(pictures, prompts' ids, remarks' ids) to a ``Reading`` and the logits of the remarks' words."""

    def __init__(self, config: WriterConfig):
        super().__init__()
        c = self.config = config
        self.reader = Tokens(c.reader())
        self.embed = nn.Embedding(len(c.said) + FIRST, c.width)
        self.place = nn.Parameter(torch.randn(c.longest + 1, c.width) * 0.02)
        self.blocks = nn.ModuleList(Writing(c.width, c.heads) for _ in range(c.write))
        self.source_norm = nn.LayerNorm(c.width)
        self.norm = nn.LayerNorm(c.width)
        self.head = nn.Linear(c.width, len(c.said) + FIRST)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, pictures: Tensor, ids: Tensor, remarks: Tensor) -> tuple[Reading, Tensor]:
        """pictures float [P, 3, 64, 64] in [-1, 1], ids int64 [P, K, L + 1], remarks int64 [P, K, T] as ``to_ids`` has them;
        returns logits [P, K, T, words] of each remark's token from those before it."""
        seen, read = self.reader.read(pictures, ids)
        sources, mask = self._sources(seen, read, ids)
        before = torch.cat([torch.full_like(remarks[..., :1], OPEN), remarks[..., :-1]], -1).flatten(0, 1)
        x = self.embed(before) + self.place[: before.shape[1]]
        for block, source in zip(self.blocks, sources, strict=True):
            x = block(x, source, mask)
        return self.reader.answer(seen, read), self.head(self.norm(x)).view(*remarks.shape, -1)

    def _writing(self) -> list[Writing]:
        return [block for block in self.blocks if isinstance(block, Writing)]

    def _sources(self, seen: Tensor, read: Tensor, ids: Tensor) -> tuple[list[Memory], Tensor]:
        """What each block looks at, N rows: the picture's tokens, then the prompt's words; and which of them are there."""
        k = ids.shape[1]
        tokens_ = (seen + self.reader.positions).repeat_interleave(k, 0)
        source = self.source_norm(torch.cat([tokens_, read.flatten(0, 1).to(tokens_)], 1))
        words = ids.flatten(0, 1) != 0
        mask = torch.cat([words.new_ones(len(words), SIDE * SIDE), words], 1)[:, None, None]
        return [memory(block.look, source) for block in self._writing()], mask

    def write(self, pictures: Tensor, ids: Tensor) -> tuple[Tensor, list[list[int]]]:
        """The logits of the match [P], and of each picture that it finds wrong the likeliest remark, word after word: ids as of
        ``to_ids``, without ``CLOSE`` where the remark did not end. ids int64 [P, L + 1]. A wrong picture's remark is never empty: it
        is written by the likeliest first word."""
        seen, read = self.reader.read(pictures, ids[:, None])
        match = self.reader.answer(seen, read).match[:, 0]
        sources, mask = self._sources(seen, read, ids[:, None])
        said: list[list[int]] = [[] for _ in pictures]
        writing = match < 0
        last = torch.full((len(pictures),), OPEN, device=pictures.device)
        pasts: list[Memory | None] = [None] * len(self.blocks)
        for at in range(self.config.longest + 1):
            if not bool(writing.any()):
                break
            x = self.embed(last)[:, None] + self.place[at]
            for i, (block, source) in enumerate(zip(self._writing(), sources, strict=True)):
                x, pasts[i] = block.step(x, pasts[i], source, mask)
            logits = self.head(self.norm(x))[:, 0]
            logits[:, :CLOSE] = -torch.inf
            if at == 0:
                logits[:, CLOSE] = -torch.inf
            last = logits.argmax(-1)
            for row, (token, on) in enumerate(zip(last.tolist(), writing.tolist(), strict=True)):
                if on:
                    said[row].append(token)
            writing = writing & (last != CLOSE)
        return match, said


def save_writer(network: Writer, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Weights as safetensors; the configuration and facts about the training in the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(network, path, {"kind": "writer", **asdict(network.config)}, facts)


def load_writer(path: Path) -> Writer:
    """The writer a file holds, ready to write; ConfigError where there is none, DamagedError where it cannot be read."""
    if not path.is_file():
        raise ConfigError(
            f"There are no critic's weights at {path}; train them: python -m secondlook.train.critic train."
        )
    settings = checkpoint.read_config(path)
    kind = settings.pop("kind", None)
    if kind != "writer":
        raise ConfigError(f'The weights {path} hold a "{kind}"; a "writer" was expected.')
    try:
        network = Writer(WriterConfig(**{**settings, **{k: tuple(settings[k]) for k in ("words", "said")}}))
    except (TypeError, KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise DamagedError(f"The weights {path} describe no writer this release knows ({error}).") from None
    checkpoint.fill(network, path)
    return network.requires_grad_(False).eval()
