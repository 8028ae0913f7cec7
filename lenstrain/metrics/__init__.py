"""How good a lens is: its score and grade, threshold and F1, and calibrated probabilities.

logits --score--> how its texts rank among all others, with an interval
       --thresholds--> where to cut, F1      --calibrators--> probabilities
score, controls, counts --grade--> grade, status, reason: the one rule
"""
