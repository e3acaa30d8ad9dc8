"""Datasets of image sets: captions, shards on disk, and the sets that training and evaluation read.

Read `sets` (the format on disk, and reading in training's order), `captions` (what is drawn), `making` (how a dataset
is made), `folder_sets` (tasks' sets from files of others).
"""
