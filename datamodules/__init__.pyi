# Written from pangu_modules/common/registry.py by `make tables`.
from datamodules.base import DataModule as DataModule
from datamodules.calibration import calibration_batches as calibration_batches
from datamodules.calibration import calibration_sequences as calibration_sequences
from datamodules.images.digits import DigitsData as DigitsData
from datamodules.images.folders import ImageFolderData as ImageFolderData
from datamodules.loader import ResumableLoader as ResumableLoader
from datamodules.reasoning.files import TaskFile as TaskFile
from datamodules.reasoning.gym import ReasoningTasks as ReasoningTasks
from datamodules.rollouts.answers import RolloutData as RolloutData
from datamodules.rollouts.taught import DistillationData as DistillationData
from datamodules.text.chat import ChatData as ChatData
from datamodules.text.mixture import Domain as Domain
from datamodules.text.mixture import MixtureData as MixtureData
from datamodules.text.ngrams import shared_ngrams as shared_ngrams
from datamodules.text.running import TextData as TextData
from datamodules.text.selected_mixture import SelectedMixtureData as SelectedMixtureData
from datamodules.text.small_vocabulary import SmallVocabularyData as SmallVocabularyData
