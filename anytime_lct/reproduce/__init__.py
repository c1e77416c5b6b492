"""The paper's tables and figures as commands: what to run, what came out, and the paper's own figures beside it."""
