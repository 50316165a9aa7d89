"""Datamodules: images, text and tasks, and the embedded samples that need no network."""

from pangu_modules.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DataModule": "datamodules.base",
        "DigitsData": "datamodules.images",
        "ImageFolderData": "datamodules.images",
        "TextData": "datamodules.text",
        "ChatData": "datamodules.text",
        "calibration_batches": "datamodules.calibration",
    },
)
