"""Training of tokenizers: VQGANs whose codes a RAR learns to predict."""
