"""The experiments of *Why Steering Works* (W) on language models, stage by stage."""
