NAME = "a package in an environment of the project"
