"""Model folders: their check before loading and publishing, their download, and the form in which they are saved."""
