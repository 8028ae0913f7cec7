"""Concept packs out of what users already have; one module a format.

labelled tables, HatCat layers, SUMO's KIF, WordNet --> ConceptPack, and an ImportReport
frames: labelled texts that Python holds
links: what importers of ontologies share
"""
