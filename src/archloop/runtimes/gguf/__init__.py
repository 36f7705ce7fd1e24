"""GGUF files of the architectures that llama.cpp knows, and how it rounds them."""
