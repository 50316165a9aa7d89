"""A recipe with dropout, a moving average of the weights and two loader workers, run by the tests of resuming."""

import time
from typing import Any

from toys import ToyData, ToyModule

from callbacks import WeightAverage
from pangu_modules import Recipe


class SlowModule(ToyModule):
    """Takes 20 ms a step, so that a kill meets it in the middle."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


recipe = Recipe(
    module=SlowModule.Config(dropout=0.3),
    data=ToyData.Config(batch_size=4, size=80, num_workers=2),
    callbacks={"ema": WeightAverage.Config(decay=0.9)},
    trainer={"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False},
)

if __name__ == "__main__":
    recipe.main()
