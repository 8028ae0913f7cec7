"""How good a lens is: its score and grade, threshold and F1, and calibrated probabilities."""
