"""How good a lens is: its score and grade, its threshold and F1, and its probabilities
(calibrators)."""
