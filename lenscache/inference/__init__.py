"""Rows through a model.

rows --batches--> batches of similar length --runner--> one prefill, then decoding, step by step
     --capture--> each block's output, pooled by mask --to_host--> numbers
sampling: the tokens of a row do not depend on other rows
"""
