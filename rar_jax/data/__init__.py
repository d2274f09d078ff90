"""The data pipeline: images -> tokenizer -> token records -> loader -> batches."""
