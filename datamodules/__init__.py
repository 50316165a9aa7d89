"""Datamodules: images, text and tasks, and the embedded samples that need no network."""

from typing import TYPE_CHECKING

from pangu_modules.common.lazy import lazy_exports

if TYPE_CHECKING:
    from datamodules.base import DataModule as DataModule
    from datamodules.calibration import calibration_batches as calibration_batches
    from datamodules.images import DigitsData as DigitsData
    from datamodules.images import ImageFolderData as ImageFolderData
    from datamodules.loader import ResumableLoader as ResumableLoader
    from datamodules.text.chat import ChatData as ChatData
    from datamodules.text.mixture import Domain as Domain
    from datamodules.text.mixture import MixtureData as MixtureData
    from datamodules.text.ngrams import shared_ngrams as shared_ngrams
    from datamodules.text.running import TextData as TextData
    from datamodules.text.selected_mixture import SelectedMixtureData as SelectedMixtureData
    from datamodules.text.small_vocabulary import SmallVocabularyData as SmallVocabularyData

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ChatData": "datamodules.text.chat",
        "DataModule": "datamodules.base",
        "DigitsData": "datamodules.images",
        "Domain": "datamodules.text.mixture",
        "ImageFolderData": "datamodules.images",
        "MixtureData": "datamodules.text.mixture",
        "ResumableLoader": "datamodules.loader",
        "SelectedMixtureData": "datamodules.text.selected_mixture",
        "SmallVocabularyData": "datamodules.text.small_vocabulary",
        "TextData": "datamodules.text.running",
        "calibration_batches": "datamodules.calibration",
        "shared_ngrams": "datamodules.text.ngrams",
    },
)
