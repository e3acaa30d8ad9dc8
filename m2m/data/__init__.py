"""Datasets of image sets: captions, shards on disk, and the sets that training and evaluation read.

Read `captions` (what is drawn), `cc12m` (captions from outside), `shards` (the format), `sets` (reading in training's
order), `card` (what a dataset says of itself).
"""
