"""What a study asks for: values, and the one place that makes them from a manifest."""
