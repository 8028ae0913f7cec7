"""A grid of fits: families, model layers and targets, here or on Ray; existing packs are kept."""
