"""The parts of `train_tiny_llama.py`: text, tokenizer, training loop, and the measure of quality."""
