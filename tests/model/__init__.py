"""Laws of the vocabulary: values, graphs, views."""
