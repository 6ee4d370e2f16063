"""All that a resume needs: the user's objects, random number generators, and the position in the data."""
