"""Lenses on a running model.

activations --running_pool--> pooled, as a text grows --device_lenses--> logits
            --naming_rule--> lenses that are named
monitor: while a model generates      reading, page: of a text      steering: directions to steer by
"""
