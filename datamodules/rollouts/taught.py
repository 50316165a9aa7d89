"""DistillationData: samples with what a teacher says of each of their tokens, from the stores of two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field

from datamodules.rollouts.answers import Folders, RolloutData, TaughtRows, folders_of
from pangu_modules.llm.distillation.sequences import TaughtSequences, sequence_of
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store import rollouts as rollout_store
from pangu_modules.llm.generation.store.score_rows import KIND, CachedScores, read_scores
from pangu_modules.llm.generation.store.shard_files import read_manifest

Place = tuple[str, int, str]
"""A task's key, the number of the sample, and the hash of its tokens: samples of several stores may share the first."""
TEACHER_LABEL = "teacher_id"
UNSEEN = 0.01  # share of tokens from which it is said that the teacher wants what the student never writes


class DistillationData(RolloutData):
    """Samples as `RolloutData` gives them, with the scores of a teacher, or of several that scored different ones.

    A batch also holds ``teacher_ids`` (batch, longest, k) int64, ``teacher_logprobs`` alike, and
    ``teacher_label_logprobs`` (batch, longest): entry t belongs to the token at t. Scores are found by sample and
    position, so that any order, batch size and number of epochs goes with the same store; it is kept in memory, 6 k + 2
    bytes a token at float16. Where two teachers scored a sample, its label ``teacher_id`` says which one counts.

    Args:
        config: the configuration.
    """

    class Config(RolloutData.Config):
        """Which samples, and which scores."""

        scores: Folders = Field(None, description="Folder of the scores, or several teachers' (set by data_from).")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.num_tokens: int | None = None
        """Tokens that teacher and student have in common, None where it is unknown; known after `setup()`."""
        self._scores: dict[Place, CachedScores] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read samples and scores; once, whatever the stage.

        Raises:
            ValueError: as `RolloutData.setup`; or no scores are named, they are of other samples, or two teachers
                scored one.
        """
        if self.train_dataset is not None:
            return
        if not folders_of(self.config.scores):
            raise ValueError("scores: no teacher's scores; name a stage of kind score with data_from, or a folder")
        super().setup(stage)
        assert isinstance(self.train_dataset, TaughtRows)
        unseen = self.train_dataset.sequences.unseen_share()
        if unseen > UNSEEN:
            rank_zero_warn(
                f"at {100 * unseen:.1f} % of the tokens the teacher's likeliest one is none that the student has ever "
                "written in these samples: it does not learn there what comes after such tokens; train on the "
                "teacher's own answers first, or sample anew soon"
            )
        self._scores = {}

    def sequences(self, rollouts: Sequence[Rollout]) -> TaughtSequences:
        """Return what batches are made of, with the scores of each sample."""
        return TaughtSequences(rollouts, [self._scores[place_of(one)] for one in rollouts])

    def _kept(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        kept = super()._kept(rollouts)
        wanted: dict[tuple[str, int], dict[str, str]] = {}
        for one in kept:
            key, sample, sequence = place_of(one)
            wanted.setdefault((key, sample), {})[sequence] = one.labels.get(TEACHER_LABEL, "")
        sampled = [read_manifest(folder, rollout_store.KIND)["identity"] for folder in folders_of(self.config.rollouts)]
        for folder in folders_of(self.config.scores):
            identity = read_manifest(folder, KIND)["identity"]
            if not self.config.allow_other:
                _check_same_samples(folder, identity["rollouts"], sampled)
            known = [rows for rows in (self.num_tokens, identity["vocabulary"]) if rows is not None]
            self.num_tokens = min(known, default=None)
            self._add(folder, identity["teacher"], wanted)
        scored = [one for one in kept if place_of(one) in self._scores]
        self.left_out["not scored"] = len(kept) - len(scored)
        self.check_left(scored, len(rollouts))
        return scored

    def _add(self, folder: str, teacher: str, wanted: Mapping[tuple[str, int], Mapping[str, str]]) -> None:
        """Take the scores of a store of those samples that are its teacher's."""
        several = len(folders_of(self.config.scores)) > 1
        for scores in read_scores(folder):
            place = scores.key, scores.sample, scores.sequence
            samples = wanted.get(place[:2], {})
            if samples and scores.sequence not in samples and len(folders_of(self.config.rollouts)) == 1:
                raise ValueError(
                    f"{folder}: sample {scores.sample} of {scores.key!r} has other tokens, or another number of them, "
                    "than those that were scored: score it again"
                )
            chosen = samples.get(scores.sequence)
            if chosen is None or (several and chosen and chosen != teacher):
                continue
            if place in self._scores:
                raise ValueError(
                    f"{folder}: sample {scores.sample} of {scores.key!r} has the scores of another teacher already: "
                    f"let each score stage take samples with other labels (only), or label tasks with {TEACHER_LABEL}"
                )
            self._scores[place] = scores


def place_of(rollout: Rollout) -> Place:
    """Return by what the scores of a sample are found."""
    return rollout.key, rollout.sample, sequence_of(rollout)


def _check_same_samples(folder: str, scored: Mapping[str, Any], sampled: Sequence[Mapping[str, Any]]) -> None:
    """Refuse scores of samples that another student, template, seed or temperature made."""
    if any(dict(scored) == dict(own) for own in sampled):
        return
    own = sampled[0]
    differing = [name for name in {**own, **scored} if own.get(name) != scored.get(name)]
    raise ValueError(
        f"{folder} holds the scores of other samples: another {', another '.join(differing)} made them; score these, "
        "or go on with allow_other=True where keys and tokens are known to be the same"
    )
