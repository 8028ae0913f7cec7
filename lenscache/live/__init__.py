"""A model while it runs: what passes through its blocks (listening), and what is added there
(steering).

continuation: what a model writes, steered or not
"""
