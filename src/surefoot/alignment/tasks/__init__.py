"""Language tasks that are generated, so that there is something real to learn where nothing can be downloaded."""
