"""A model while it runs: what its blocks put out (listening), and what is added there (steering).

continuation: what a model writes, steered or not
"""
