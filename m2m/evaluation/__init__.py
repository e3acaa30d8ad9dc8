"""Evaluation after the paper: how good generated images are, how well they keep to their set, and how they vary.

A module a task says how its models are measured: `mis`, `nvs`, `vpg`. Read `networks` (who judges, and what they see;
`published` has the networks of others), `continuations` (what the model draws), `metrics` (the paper's), `figures`
(intervals, and how numbers are written). `pattern` scores who tells what a set shares from what it varies in, beside
`baselines` (what can be known, and what others draw); `places` asks whether the order matters. Apart from all that,
`efficiency` measures what an image costs.
"""
