"""Readers of image data sets in the files that their authors publish, one module per format."""
