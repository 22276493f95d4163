"""Real language models in Flax behind the split of `ufm.steerable`: architectures, checkpoints, tokenizers, generation."""
