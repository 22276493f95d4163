"""Parameters as files hold them: Hugging Face folders, GGUF files, Orbax checkpoints, and the maps between their names."""
