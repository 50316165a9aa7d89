"""Callbacks: the methods' schedules over training, and what every recipe has (exact resume)."""

from pangu_modules.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ExactResume": "callbacks.exact_resume",
        "RecipeCallback": "callbacks.base",
        "ResumeCheckpoint": "callbacks.resume_checkpoint",
        "WeightAverage": "callbacks.weight_average",
    },
)
