"""Lens packs in the formats of other programs: HatCat's classifiers, and control vectors for
llama.cpp and repeng."""
