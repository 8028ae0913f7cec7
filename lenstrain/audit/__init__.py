"""Can a data set be trusted: leaks between splits, twins (near-duplicates), labels that contradict
each other."""
