"""The engine: requests are scheduled, run group by group, and answered before they are due."""
