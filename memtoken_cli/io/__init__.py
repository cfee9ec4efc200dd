"""Files, streams, locks and errors: everything that touches the outside. No torch at module level."""
