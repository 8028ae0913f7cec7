"""Rows through a model.

rows --batches--> batches of similar length --runner--> one prefill, then decoding, step by step
     --capture--> each block's output, pooled by mask --to_host--> numbers
recording, recordings: a decode step as a CUDA graph, and which ones are kept
sampling: the tokens of a row do not depend on other rows      hooks: what hooks on blocks need
trial: whether a model runs at all                             alone: a row without a batch
"""
