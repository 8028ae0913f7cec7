"""A causal language model, and what tells it from others.

folder, Hugging Face id or built-in name --loading--> LoadedModel, spread over devices (placement)
adapter: LoRA and others in its layers; wrapping: what is loaded already
fingerprint: a digest of the weights; outline: shapes without weights
caches: keys and values: their name in the forward pass, whether they were given, of fixed size
"""
