"""Rows through a model.

rows --batches--> batches of like length --runner--> one prefill, then decoding, step by step
     --capture--> each block's output, pooled by mask; sampling: tokens that no other row has a say in
"""
