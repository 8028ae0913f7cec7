"""Many fits: a grid of families, model layers and targets, here or on Ray; packs that are there
already are kept."""
