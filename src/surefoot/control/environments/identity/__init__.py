"""What an environment is: the record, how it is read off an environment, and whether EnvPool has the same."""
