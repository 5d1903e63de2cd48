"""What a model is trained on: data, rewards and their grader, and the model's own folder made ready."""
