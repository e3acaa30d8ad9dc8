"""Evaluation after the paper: how good generated images are, how well they keep to their set, and how they vary.

Read `networks` (who judges), `scores` (the paper's metrics), `agreement` and `diversity` (what those do not see),
`measure` (all of it for one lot of pictures), `sampling` and `lots` (where the pictures come from), `comparison` (what
the numbers say beside each other), `table` (how they are written). `pattern` scores who tells what a set shares from
what it varies in: by `misses` (what does not count), beside `ideal_reader` (what can be known), with intervals by
`resampling`. Apart from all that, `efficiency` measures what an image costs, by `timing` and `operations`.
"""
