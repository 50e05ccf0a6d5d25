"""What can be trained: each task brings its model, data, loss and measures, and knows no optimizer."""
