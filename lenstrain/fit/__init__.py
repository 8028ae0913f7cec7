"""From a dataset to a lens pack.

dataset --choice--> model layer and strength --adaptive, iterations--> fits, until graduation
        --controls, directions, measure--> FittedLens (fitted) --refine--> --to_pack--> LensPack
train: all of it      follow: while extraction still runs      transfer: judged at another dtype
"""
