"""Callbacks: the methods' schedules over training, and what every recipe has (exact resume)."""

from typing import TYPE_CHECKING

from pangu_modules.lazy import lazy_exports

if TYPE_CHECKING:
    from callbacks.base import RecipeCallback as RecipeCallback
    from callbacks.exact_resume import ExactResume as ExactResume
    from callbacks.resume_checkpoint import ResumeCheckpoint as ResumeCheckpoint
    from callbacks.weight_average import WeightAverage as WeightAverage

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ExactResume": "callbacks.exact_resume",
        "RecipeCallback": "callbacks.base",
        "ResumeCheckpoint": "callbacks.resume_checkpoint",
        "WeightAverage": "callbacks.weight_average",
    },
)
