"""What a person sees: progress, figures, films, TensorBoard."""
