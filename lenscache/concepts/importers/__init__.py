"""Concept packs out of what users already have; one module a format.

labelled tables, HatCat layers, SUMO's KIF, WordNet --> ConceptPack, and an ImportReport of what was repaired
links: parents and children that do not fit together
"""
