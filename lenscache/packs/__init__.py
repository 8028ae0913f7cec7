"""Where concept packs come from: one module a source, and the checks that any pack can be held against."""
