"""Lenses as they are shipped.

Lens (lens) --pack--> LensPack: all lenses of a model layer as one matrix
tensors: weights as named tensors --folder--> a folder of them, replaced whole or not at all
"""
