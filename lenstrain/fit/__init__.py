"""From a dataset to a lens pack.

dataset --choice--> model layer and strength --adaptive, iterations--> one fit after the other, until graduation
        --controls, directions, measure--> FittedLens (fitted) --refine--> --to_pack--> LensPack
train: all of it      follow: while extraction is still running      transfer: lenses judged at another dtype
"""
