"""Datasets of image sets: captions, shards on disk, and the sets that training and evaluation read.

Read `shards` (the format), `sets` (reading in training's order), `captions` (what is drawn), `making` (how a dataset is
made), `folder_sets` (tasks' sets from files of others).
"""
