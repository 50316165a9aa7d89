"""ScaleNet: DeiT-S from 12 to 24 layers with shared weights (arXiv:2510.18431)."""

from recipes.scalenet_deit_b import recipe as base

recipe = base.derive(
    module={"backbone": "deit_small_patch16_224", "adapter_rank": 16, "drop_path": 0.0},
    reference={"parameters": 22_678_120},
)

if __name__ == "__main__":
    recipe.main()
