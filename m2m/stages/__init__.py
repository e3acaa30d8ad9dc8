"""The stages of the pipeline: one module each, with one function `run`. Stages do not import each other."""
