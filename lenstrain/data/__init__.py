"""A store as training data.

store --dataset--> LensDataset: rounds joined by sample key, one split a prompt
concept --tasks--> positives and negatives --rows--> what it learns from, and what it is judged by
features: standardised activations      words: TF-IDF of completions
background: texts that express no concept
evidence: which concepts cannot get a grade
"""
