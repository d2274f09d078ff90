"""The way of the data: images -> tokenizer -> token records -> loader -> batches."""
