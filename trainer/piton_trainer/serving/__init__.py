"""A trained model in a folder, and over HTTP."""
