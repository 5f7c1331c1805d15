"""Published measurements of vLLM 0.8.5 and of S-LoRA: fit the bundled profiles to them, and predict their runs."""
