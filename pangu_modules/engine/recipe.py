"""Recipe: an experiment as code. One stage or several in order, each with module, data, callbacks and trainer.

It stands on top of the engine: the data are `RecipeSpec`'s, running them and the command line are imported when asked
for, and nothing below imports this module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_modules.engine.spec import RecipeSpec

if TYPE_CHECKING:
    from pangu_modules.engine.making import DataResult
    from pangu_modules.engine.run import StageResult
    from pangu_modules.engine.stages import BaseStage


class Recipe(RecipeSpec):
    """An experiment: stages in order, what the paper states, and the commands to run it.

    A recipe of one stage is written flat: ``Recipe(module=..., data=..., callbacks=..., trainer=...)``; a pipeline as
    ``Recipe(stages={"base": Stage(...), "expand": Stage(..., start_from="base")})``. Its arguments are `RecipeSpec`'s.
    """

    def fit(self, run_dir: str | Path, *, start_from: str | Path | None = None, quiet: bool = False) -> StageResult:
        """Train and test the recipe's only stage in `run_dir`, without the command line.

        Args:
            run_dir: folder for checkpoints, metrics and the result; created if needed.
            start_from: checkpoint whose structure and weights training starts from.
            quiet: no progress bar and no summary.

        Returns:
            The test metrics, parameter count, seconds and the last checkpoint's path.

        Raises:
            ValueError: the recipe has several stages (take one with `stage`), or one that makes data (see `make`), or
                another process writes in `run_dir`.
        """
        from pangu_modules.engine.run import fit_stage
        from pangu_modules.engine.stages import Stage

        stage = self._only_stage(start_from)
        if not isinstance(stage, Stage):
            raise ValueError("fit trains; the recipe's stage makes data: call make(run_dir)")
        with self._claimed(run_dir):
            return fit_stage(stage, Path(run_dir), quiet=quiet)

    def make(self, run_dir: str | Path, *, start_from: str | Path | None = None, quiet: bool = False) -> DataResult:
        """Make the data of the recipe's only stage in `run_dir`, without the command line; it goes on where it stopped.

        Arguments and errors are those of `fit`.

        Returns:
            The figures of the data, their rows, seconds, and the folder of shards.
        """
        from pangu_modules.engine.data_stages import DataStage
        from pangu_modules.engine.making import make_data

        stage = self._only_stage(start_from)
        if not isinstance(stage, DataStage):
            raise ValueError("make is for stages that make data; the recipe's stage trains: call fit(run_dir)")
        with self._claimed(run_dir):
            return make_data(stage, Path(run_dir), quiet=quiet)

    def _only_stage(self, start_from: str | Path | None) -> BaseStage:
        from pangu_modules.engine.own_modules import started_from

        if not self.single:
            raise ValueError(f"one stage runs at a time; choose with .stage(name): {', '.join(self.stages)}")
        stage = self.stages[""]
        return stage if start_from is None else started_from(stage, start_from)

    def _claimed(self, run_dir: str | Path) -> AbstractContextManager[None]:
        from pangu_modules.engine.launch import leads
        from pangu_modules.engine.writer import claimed

        return claimed(Path(run_dir)) if leads() else nullcontext()

    def main(self, arguments: list[str] | None = None) -> None:
        """Run the command line: see ``--help``. Exits with code 2 and a short message on a bad value."""
        from pangu_modules.engine.cli import main

        main(self, arguments)
