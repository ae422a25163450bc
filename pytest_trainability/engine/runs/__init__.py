"""From a recipe to one run per seed, and running a model again."""
