"""The race of an epoch on packed rows against one on padded batches of the same conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.text.chat_labels import Sample
    from pangu_modules.llm.causal_lm import CausalLM

TARGET = 1 / 0.7  # at most 0.7 of the time that padding takes
# Mean loss of a target in float32, each side with rows of its own shape; seen: 7e-9.
BOUND = 1e-5
ROW, ROWS = 512, 2
"""Tokens of a packed row, and rows of a batch."""
PADDED = 8
"""Conversations of a padded batch, about as many as in a packed one: ChatData's own default."""
CONVERSATIONS = 32
MEDIAN, SIGMA = 128, 1.0
"""Of the lognormal lengths; the longest are left out."""
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": ROW,
    "tie_word_embeddings": True,
}
"""Two blocks of SmolLM2's shapes, with a smaller vocabulary."""


def contests(model_args: Mapping[str, Any] = MODEL, conversations: int = CONVERSATIONS) -> Iterator[Contest]:
    """Return the race, for a model with these fields, over so many conversations."""
    from datamodules.text.packing import PackedConversations

    samples = lognormal_conversations(conversations, model_args["vocab_size"])
    module = new_module(model_args)
    packed, batches = PackedConversations(samples, ROW), []
    for rows, size in ((packed, ROWS), (samples, PADDED)):
        batches.append(list(collated(rows, size)))
    ours, peer = (Epoch(module, each) for each in batches)
    share = ours.tokens() / peer.tokens()

    def check() -> tuple[float, float]:
        return abs(ours.mean_loss() - peer.mean_loss()), BOUND

    race = Race(
        "packing",
        f"an epoch of {len(samples)} conversations of lognormal lengths ({peer.targets()} targets), in rows of {ROW} "
        f"tokens ({share:.2f} of the padded tokens), per thousand targets",
        per_thousand_targets(ours),
        per_thousand_targets(peer),
        f"batches of {PADDED} in random order, padded to their longest",
        unit="ms",
        target=TARGET,
    )
    yield Contest("packed and padded conversations (mean loss of a target)", check, (race,))


class Epoch:
    """One pass over batches: forward, backward and AdamW for each.

    Args:
        module: the model, which both sides share.
        batches: in the order of the pass.
    """

    def __init__(self, module: CausalLM, batches: Sequence[Mapping[str, Tensor]]) -> None:
        import torch

        self.module, self.batches = module, batches
        # The rate is zero, so that both sides compute with one model throughout; the work of a step is the same.
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0)

    def __call__(self) -> None:
        """Make the pass."""
        from pangu_modules.training.objectives import evaluate

        for batch in self.batches:
            self.optimizer.zero_grad()
            outputs = self.module.compute_outputs(batch)
            evaluate(self.module.objectives, self.module, batch, outputs).total.backward()
            self.optimizer.step()

    def mean_loss(self) -> float:
        """Return the mean loss over all targets, in nats."""
        import torch

        from pangu_modules.llm.losses import token_losses

        total = 0.0
        with torch.no_grad():
            for batch in self.batches:
                losses, _ = token_losses(self.module.compute_outputs(batch)["logits"], batch["labels"])
                total += float(losses.double().sum())
        return total / self.targets()

    def targets(self) -> int:
        """Return the number of tokens that are predicted."""
        from pangu_modules.llm.losses import count_targets

        return sum(int(count_targets(batch["labels"]).sum()) for batch in self.batches)

    def tokens(self) -> int:
        """Return the number of tokens that are computed, padding included."""
        return sum(batch["input_ids"].numel() for batch in self.batches)


def per_thousand_targets(epoch: Epoch) -> Callable[[], float]:
    """Return a measurement of one pass, in milliseconds for a thousand targets."""
    measure = timed(epoch)
    return lambda: 1e6 * measure() / epoch.targets()


def lognormal_conversations(count: int, vocabulary: int) -> list[Sample]:
    """Return conversations of random tokens, of which the last two thirds are the answer."""
    import numpy as np

    from pangu_modules.common.batches import IGNORE_INDEX

    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(np.log(MEDIAN), SIGMA, 4 * count)).astype(int)
    samples = []
    for length in lengths[(lengths >= 8) & (lengths <= ROW)][:count].tolist():
        ids = generator.integers(0, vocabulary, length).tolist()
        samples.append({"input_ids": ids, "labels": [IGNORE_INDEX] * (length // 3) + ids[length // 3 :]})
    return samples


def collated(rows: Any, size: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield batches of rows, padded to the longest of each; lengths stand in random order already."""
    from datamodules.text.chat import pad_right

    for start in range(0, len(rows), size):
        yield pad_right([rows[index] for index in range(start, min(start + size, len(rows)))], 0)


def new_module(model_args: Mapping[str, Any]) -> CausalLM:
    """Return a random Llama."""
    import torch

    from pangu_modules.llm.causal_lm import CausalLM

    torch.manual_seed(0)
    return CausalLM.Config(architecture="llama", model_args=dict(model_args), loss_per="token").build()
