"""One kernel of attention per file; ``library/`` beside it holds those of linears and convolutions."""
