"""SOUP on verl: everything that touches verl, vLLM, Ray or FSDP. `trainer` is the training step."""
