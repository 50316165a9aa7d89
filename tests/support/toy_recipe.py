"""The toy recipe as a script, for tests that start processes."""

from toys import ToyData, ToyModule, Widen

from pangu_modules import Recipe

recipe = Recipe(
    module=ToyModule.Config(),
    data=ToyData.Config(batch_size=8),
    callbacks={"widen": Widen.Config()},
    trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
)

if __name__ == "__main__":
    recipe.main()
