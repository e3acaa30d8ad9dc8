"""Prefect flows over DVC's stages: a task a stage, from DVC's own graph."""
