"""Image classification: data sets in their original files, models, augmentation, task."""
