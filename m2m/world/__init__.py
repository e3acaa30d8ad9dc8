"""The embedded world: captioned pictures of named content in named styles, drawn by procedures instead of photographed.

Read `vocabulary` (what can be named), `grammar` (captions and back), `pictures` (shapes in styles), `procedures`
(things under construction), `studio` (rendered views, by `cameras`), `corpus` (all of it as training data), in this
order. `meshes` has people's own objects photographed in the same studio.
"""
