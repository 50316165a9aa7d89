"""The dispatch table: every operator that can be fused, by its name."""

from __future__ import annotations

from typing import Any

from pangu_modules.ascend.ops import activations, attention, grouped, int8, losses, norms, permutation, rotary, routing
from pangu_modules.ascend.ops import tokens as token_rows
from pangu_modules.ascend.ops.dispatch import Explanation
from pangu_modules.ascend.ops.operator import Operator
from pangu_modules.common.names import nearest

MODULES = (norms, rotary, activations, attention, losses, grouped, routing, permutation, token_rows, int8)

OPERATORS: dict[str, Operator[Any, Any]] = {
    value.name: value for module in MODULES for value in vars(module).values() if isinstance(value, Operator)
}


def explain(operator: str | Operator[Any, Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say whether a call of an operator would be fused, and if not, why.

    Args:
        operator: the operator, or its name.
        args: what it would be called with.
        kwargs: likewise.

    Raises:
        ValueError: there is no operator of this name.
    """
    if isinstance(operator, str):
        if operator not in OPERATORS:
            raise ValueError(f"there is no operator {operator!r}{nearest(operator, OPERATORS)}; see OPERATORS")
        operator = OPERATORS[operator]
    return operator.explain(*args, **kwargs)
