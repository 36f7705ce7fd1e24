"""Text: corpora, tokenizers, chat templates."""
