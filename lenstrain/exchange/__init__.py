"""Lens packs for other programs: HatCat's classifiers, control vectors of llama.cpp and repeng."""
