"""The sampling recipe as a script, for tests that start processes."""

from sampled import sampling

recipe = sampling()

if __name__ == "__main__":
    recipe.main()
