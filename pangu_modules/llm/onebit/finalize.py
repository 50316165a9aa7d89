"""The end of binarization: latent layers become plain linear layers with two values in each row."""

from __future__ import annotations

from torch import nn

from pangu_modules.llm.onebit.layer import ScaleDtype
from pangu_modules.llm.onebit.plan import BinarizePlan, binary_layers
from pangu_modules.training.module import PanguModule


def finalize_model(model: nn.Module, scale_dtype: ScaleDtype = "float32") -> list[str]:
    """Replace every `ProgressiveBinaryLinear` of the model by the plain layer it ends as; return their names.

    Raises:
        ValueError: a scale is outside of `scale_dtype`'s range.
    """
    layers = binary_layers(model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.finalize(scale_dtype))
    return list(layers)


def finalize_module(module: PanguModule) -> list[str]:
    """Finalize a module's model, and mark its plans as final; return the names of the layers.

    For checkpoints of the middle of training, e.g. ``best.ckpt``: at the end of training the callback does it. Scales
    are rounded as the plan's configuration says.

    Raises:
        ValueError: the module has no plan that binarizes.
    """
    plans = [plan for plan in module.config.structure if isinstance(plan, BinarizePlan)]
    if not plans:
        raise ValueError("the module holds no binarized layers: nothing to finalize")
    names = finalize_model(module.model, plans[-1].onebit.scale_dtype)
    module.replace_structure(
        [plan.derive(final=True) if isinstance(plan, BinarizePlan) else plan for plan in module.config.structure]
    )
    return names
