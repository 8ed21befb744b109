"""Real clients against a real server: what people will point at Quell."""
