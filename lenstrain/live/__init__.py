"""Lenses on a running model.

activations --running_pool--> a text as it grows --device_lenses--> logits --naming_rule--> lenses that are named
monitor: while a model generates      reading, page: a text, for people      steering: what to steer along
"""
