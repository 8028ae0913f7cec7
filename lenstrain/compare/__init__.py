"""Lenses beside each other.

pack, dataset --heldout--> logits on one held-out split, from which all else is counted
rivals: whose lens leads on whose samples      agreement: lenses of text and of activations
two_packs: one pack against another      impact: what another validation mode would have cost
"""
