"""What SOUP computes and decides, as plain Python and tensors: nothing here knows Ray, vLLM or verl."""
