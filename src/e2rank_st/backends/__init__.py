"""Forward passes that are somewhere else: on a server, or in a queue that many requests share."""
