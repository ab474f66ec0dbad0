"""Q-Diffusion (arXiv:2302.04304) on a small model of our own: every row is one JSON file, the pages are made from them."""
