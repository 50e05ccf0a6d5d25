"""Images from the files that their makers publish, one room per format."""
