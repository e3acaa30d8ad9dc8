"""The embedded world: captioned pictures of named content in named styles, drawn by procedures instead of photographed.

Read `grammar` (what can be named, captions and back), `pictures` (shapes in styles), `procedures` (things under
construction), `studio` (rendered views, by `cameras`), `corpus` (all of it as training data), in this
order. `meshes` has people's own objects photographed in the same studio.
"""
