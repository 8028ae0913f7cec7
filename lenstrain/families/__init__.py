"""The kinds of lenses. A new one is a module here and a line in `kinds.py`.

contract: what a trainer takes and gives      weights: what it ships
linear (on logistic, standardizer), discriminant, mean_difference, mlp, ensemble: the families
linear_lens: the default family for users of scikit-learn      checks: what they are given
"""
