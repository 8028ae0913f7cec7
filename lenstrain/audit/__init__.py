"""Can a data set be trusted: leaks between splits, near-duplicates, labels that contradict."""
