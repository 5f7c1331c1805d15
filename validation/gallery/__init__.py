"""Published results of other people, predicted: every module here but ``entry`` holds the entries of one source."""
