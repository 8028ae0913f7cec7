"""From a dataset to a lens pack.

dataset --choice--> model layer and strength --adaptive, iterations--> fits, until graduation
        --controls, directions, measure--> FittedLens (fitted) --refine--> --to_pack--> LensPack
cut: the decision threshold
train: all of it      follow: while extraction still runs      transfer: judged at another dtype
"""
