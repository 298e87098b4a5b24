"""The commands of the command line: options in, a status out. Engines are imported when a command runs, not before."""
