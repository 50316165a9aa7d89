"""Datamodules: images, text and tasks, and the embedded samples that need no network."""

from typing import TYPE_CHECKING

from pangu_modules.common.lazy import lazy_exports

if TYPE_CHECKING:
    from datamodules.base import DataModule as DataModule
    from datamodules.calibration import calibration_batches as calibration_batches
    from datamodules.chat import ChatData as ChatData
    from datamodules.images import DigitsData as DigitsData
    from datamodules.images import ImageFolderData as ImageFolderData
    from datamodules.loader import ResumableLoader as ResumableLoader
    from datamodules.mixture import Domain as Domain
    from datamodules.mixture import MixtureData as MixtureData
    from datamodules.ngrams import shared_ngrams as shared_ngrams
    from datamodules.selected_mixture import SelectedMixtureData as SelectedMixtureData
    from datamodules.small_vocabulary import SmallVocabularyData as SmallVocabularyData
    from datamodules.text import TextData as TextData

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ChatData": "datamodules.chat",
        "DataModule": "datamodules.base",
        "DigitsData": "datamodules.images",
        "Domain": "datamodules.mixture",
        "ImageFolderData": "datamodules.images",
        "MixtureData": "datamodules.mixture",
        "ResumableLoader": "datamodules.loader",
        "SelectedMixtureData": "datamodules.selected_mixture",
        "SmallVocabularyData": "datamodules.small_vocabulary",
        "TextData": "datamodules.text",
        "calibration_batches": "datamodules.calibration",
        "shared_ngrams": "datamodules.ngrams",
    },
)
