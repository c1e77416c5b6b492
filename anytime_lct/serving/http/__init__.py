"""HTTP: connections, bodies, paths, status codes, and the page to try the server."""
