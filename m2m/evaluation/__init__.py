"""Evaluation after the paper: how good generated images are, how well they keep to their set, and how they vary.

Read `networks` (who judges), `scores` (the paper's metrics), `agreement` and `diversity` (what they do not see), `measure`
(all of it for one lot of images), `lots` and `sampling` (where the images come from), `table` (the numbers file).
"""
