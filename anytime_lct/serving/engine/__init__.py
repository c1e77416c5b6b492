"""The engine: requests scheduled, run group by group, and answered before they are due."""
