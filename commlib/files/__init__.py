"""Files, whatever is in them: bounded reading, atomic writing, and strict JSON with errors that name the key."""
