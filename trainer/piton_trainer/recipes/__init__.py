"""The recipes that Piton ships; `catalog` lists them. Importing this package imports no torch."""
