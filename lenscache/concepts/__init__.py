"""What a model is asked about.

file --importers--> ConceptPack (pack) --hierarchy--> who is above, below, beside whom
Concept --prompts, templates--> Prompt, in nested order --plan--> SamplePlan: each text once
quality: what is wrong with a pack      evidence: which concepts cannot get a grade
(both before it costs anything)
"""
