"""Making data for a detector and a detoxifier with a chat model, in the manner of Safe-Harm-10K (arXiv 2401.02906).

Scenarios give questions, each question gets a harmless and a harmful answer. What was built
holds text that can be delicate: files are readable by their owner alone, and nothing but
counts is ever shown.
"""
