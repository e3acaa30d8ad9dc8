"""The readers of mesh files: what glTF, OBJ, PLY and STL say of a surface's shape and colour.

Each reader is a function of a `Source` that gives `Surface` after `Surface`. What is damaged, missing or not supported
is a `ValueError` of one line; nothing of a file is believed before it is checked, since what draws is C++.
"""
