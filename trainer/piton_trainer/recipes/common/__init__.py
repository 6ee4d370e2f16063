"""Parts that several recipes share: a text encoder and nDCG."""
