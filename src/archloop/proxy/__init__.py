"""What one trial costs: a short training on a mixture of text and tasks, and its scores."""
