"""The experiments of *Towards Understanding Steering Strength* (S) on language models, stage by stage."""

STAGES = ("prompts", "vectors", "log-odds", "next-token", "concept", "blocks", "cross-entropy", "mmlu")
"""The stages by name, in the order of their page."""
