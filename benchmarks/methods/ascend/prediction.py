"""What a roofline predicts of single operators on a card: each fused, and as the stock operators it stands for.

No number here is measured. The time of an operator is the longer of its arithmetic and its memory traffic plus the
start of a kernel (`pangu_modules.simulator.roofline.seconds`); stock operators run one after the other, and each reads
and writes all its tensors. The sizes are those of one layer of Pangu Pro MoE 72B on one device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pangu_modules.simulator.hardware import Efficiency, find_card
from pangu_modules.simulator.roofline import Operator, seconds

CARD = "ascend_800i_a2"
TOKENS = 4096
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 5120, 40, 8, 128
EXPERTS, GROUPS, CHOSEN, INNER = 64, 8, 8, 1344
HALF, WIDE = 2, 4  # bytes


@dataclass(frozen=True)
class Cost:
    """An operator's work in one go, and as stock operators.

    Args:
        name: of the dispatch table.
        sizes: what it is computed on.
        elements: entries that the traffic is counted by.
        fused: bytes read and written for each entry by the fused operator.
        stock: the same for each of the stock operators.
        flops: of the matrix products in it, once for each of `products` kernels together.
        products: stock kernels that the products take.
        extra: bytes that both move besides.
    """

    name: str
    sizes: str
    elements: float
    fused: float
    stock: tuple[float, ...] = field(default=())
    flops: float = 0.0
    products: int = 0
    extra: float = 0.0


def costs() -> Iterator[Cost]:
    """Yield what the operators of a layer cost."""
    states = TOKENS * HIDDEN
    rotated = TOKENS * (HEADS + KV_HEADS) * HEAD_DIM
    rows = TOKENS * CHOSEN
    # To float32, square, mean, times 1 / rms, back to 16 bit, times weight.
    norm = (HALF + WIDE, 2 * WIDE, WIDE, 2 * WIDE, WIDE + HALF, 2 * HALF)
    yield Cost("rms_norm", f"{TOKENS} x {HIDDEN}", states, 2 * HALF, norm)
    added = (3 * HALF, *norm)
    yield Cost("add_rms_norm", f"{TOKENS} x {HIDDEN}", states, 4 * HALF, added)
    # Times cosine; minus one half; join; times sine; add.
    turned = (2 * HALF, HALF, 2 * HALF, 2 * HALF, 3 * HALF)
    yield Cost("rotary_mul", f"{TOKENS} x {HEADS + KV_HEADS} x {HEAD_DIM}", rotated, 2 * HALF, turned)
    yield Cost("swiglu", f"{rows} x {2 * INNER}", rows * INNER, 3 * HALF, (2 * HALF, 3 * HALF))
    # Of the scores: written, masked, softmax to float32 and back, read.
    scores = TOKENS * TOKENS * HEADS
    yield Cost(
        "infer_attention",
        f"{TOKENS} of {HEADS} x {HEAD_DIM}, causal",
        scores,
        0.0,
        (HALF, 2 * HALF, HALF + WIDE, WIDE + HALF, HALF),
        flops=4 * scores * HEAD_DIM / 2,
        products=2,
        extra=HALF * TOKENS * HEAD_DIM * 2 * (HEADS + KV_HEADS),
    )
    yield Cost("gating_top_k_softmax", f"{TOKENS * GROUPS} x {EXPERTS // GROUPS}", TOKENS * EXPERTS, WIDE, (8, WIDE))
    yield Cost(
        "grouped_matmul",
        f"{rows} x {HIDDEN} to {2 * INNER}, {EXPERTS} experts",
        0.0,
        0.0,
        flops=2 * rows * HIDDEN * 2 * INNER,
        products=EXPERTS,
        extra=HALF * (EXPERTS * HIDDEN * 2 * INNER + rows * (HIDDEN + 2 * INNER)),
    )


def rows() -> list[dict[str, Any]]:
    """Return the predictions: microseconds fused, microseconds with stock operators, and their ratio."""
    card, efficiency = find_card(CARD), Efficiency()
    start = 1e-6 * efficiency.operator_latency_us
    found = []
    for cost in costs():
        unit: Any = "attention" if "attention" in cost.name else "16bit"
        fused = seconds(
            Operator("", cost.flops, cost.elements * cost.fused + cost.extra, unit), card, efficiency, "bf16"
        )
        stock = sum(
            seconds(Operator("", 0, cost.elements * traffic, "16bit"), card, efficiency, "bf16")
            for traffic in cost.stock
        )
        if cost.products:
            product = Operator("", cost.flops * (2 if cost.name == "infer_attention" else 1), cost.extra, "16bit")
            stock += seconds(product, card, efficiency, "bf16") + (cost.products - 1) * start
        found.append(
            {
                "operator": cost.name,
                "sizes": cost.sizes,
                "predicted fused, us": f"{1e6 * fused:.0f}",
                "predicted stock, us": f"{1e6 * stock:.0f}",
                "predicted ratio": f"{stock / fused:.1f}",
            }
        )
    return found
