"""The processes of a run: the team, the links between workers, the launcher, and the watch for lost processes."""
