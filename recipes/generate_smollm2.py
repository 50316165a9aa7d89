"""SmolLM2-135M answers 100 reasoning-gym tasks of three levels, 4 samples each, judged: pass rates and Parquet."""

from datamodules import ReasoningTasks
from pangu_modules import CausalLM, GenerationEngine, Recipe

recipe = Recipe(
    kind="generate",
    module=CausalLM.Config(model="smollm2"),
    data=ReasoningTasks.Config(num_train=100, num_test=100),
    engine=GenerationEngine.Config(samples=4, max_new_tokens=64, temperature=0.7, batch_size=32),
    split="test",
    cost="4 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
